"""The facts of every image file: what its header says, what its pixels show, why it fails."""

import hashlib
import io
import json
import os
import sqlite3
import stat
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import imagehash
import numpy as np
from PIL import Image, ImageCms, ImageFilter, UnidentifiedImageError

from resnet_ft.audit.placeholders import background_share
from resnet_ft.data import images, jpeg
from resnet_ft.files import user_path
from resnet_ft.notebook import progress_bar

Facts = dict[str, Any]

THUMBNAIL = 24  # pixels per side of a thumbnail: enough to distinguish two images
_SIDE = 256  # pixels of the short side at which an image is measured, about what a model sees
_HASHED_SIDE = 72  # pixels
_TAIL = 0.02  # share of the pixels that may be darker than `darkest`, or brighter than `brightest`
_ANIMATED = frozenset({"GIF", "PNG", "WEBP", "AVIF"})  # others hold pages, previews, depth maps
_LARGE = 16_000_000  # pixels: larger images are decoded one at a time, to save memory
_PROBLEMS: dict[type[Exception], str] = {
    UnidentifiedImageError: "not an image",
    Image.DecompressionBombError: "decompression bomb",
}
_BLUR = ImageFilter.BoxBlur(3)
_one_at_a_time = threading.Lock()


def inspect_files(
    paths: Sequence[Path], *, num_workers: int | None = None, cache_dir: str | Path
) -> list[Facts]:
    """The facts of every file, as `inspect_file` finds them, with a progress bar.

    `num_workers` threads (one per core) read them: Pillow decodes outside of Python's lock. Facts
    are kept in `cache_dir`, and a file that did not change is not read again, unless it could not
    be read: the reason may be gone.
    """
    store = _FactStore(cache_dir)
    facts = store.find(paths)
    missing = [path for path in paths if path not in facts]
    pool = ThreadPoolExecutor(os.cpu_count() if num_workers is None else max(1, num_workers))
    try:
        with warnings.catch_warnings():
            # The facts hold what the decoders warn of.
            warnings.filterwarnings("ignore", module="PIL|pillow_heif")
            inspected = zip(missing, pool.map(inspect_file, missing), strict=True)
            for path, found in progress_bar(inspected, "Inspecting images", len(missing)):
                facts[path] = found
                if "problem" not in found:
                    store.add(path, found)
    finally:
        pool.shutdown(cancel_futures=True)
        store.write()
    return [facts[path] for path in paths]


def inspect_file(path: str | Path) -> Facts:
    """What is known of one image file, as a dictionary of plain values. Never raises.

    `bytes`, `key` (of the file, see `decoding_key`), `content` (a hash), `format`, `mode`, `width`
    and `height` (upright), `orientation` (EXIF), `animated`, `pages` (of a TIFF), `profile` (of
    colours other than sRGB), `unended` (a JPEG without an end marker), `transparent`, and what
    `_appearance` measures. For a file that cannot be read completely: what could be found,
    `problem` (its kind, an issue of the audit) and `reason`.
    """
    facts: Facts = {}
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe could wait forever
            return {"problem": "unreadable", "reason": "not a file but a folder, pipe or device"}
        facts |= {"bytes": status.st_size, "key": images.decoding_key(path)}
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16))
            facts["content"] = digest.hexdigest()
            file.seek(0)
            with Image.open(file, formats=images.readable_formats()) as image:
                width, height = images.upright_size(image)
                facts |= {
                    "format": image.format,
                    "mode": image.mode,
                    "width": width,
                    "height": height,
                    "orientation": images.orientation(image),
                    "animated": image.format in _ANIMATED and getattr(image, "is_animated", False),
                    "pages": _pages(image),
                    "profile": _profile(image),
                    "unended": _is_unended(file, image),
                }
                image.draft(None, (_SIDE, _SIDE))  # a smaller JPEG; every byte is still read
                with _one_at_a_time if image.width * image.height > _LARGE else nullcontext():
                    facts |= _decoded(image, facts)
    except Exception as error:  # a decoder can fail in any way on a damaged file
        kind = "truncated" if "truncated" in str(error) else "unreadable"
        kind = _PROBLEMS.get(type(error), kind)
        facts["problem"] = "empty file" if facts.get("bytes") == 0 else kind
        facts["reason"] = images.unreadable_because(path, error)
    return facts


def _pages(image: Image.Image) -> int:
    """How many pages a TIFF has, of which the first is used."""
    with suppress(Exception):  # a directory that cannot be read is no page
        return getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    return 1


def _is_unended(file: IO[bytes], image: Image.Image) -> bool:
    """Whether a JPEG lacks its end marker, which is harmless where the picture is whole."""
    if image.format not in ("JPEG", "MPO"):
        return False
    place = file.tell()
    file.seek(0)
    lacks_end = jpeg.lacks_end(file.read())
    file.seek(place)
    return lacks_end


def _profile(image: Image.Image) -> str | None:
    """The name of an embedded colour profile that is not sRGB, whose colours look different."""
    if not (profile := image.info.get("icc_profile")):
        return None
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "unreadable profile"
    return None if "srgb" in name.lower() or "gray" in name.lower() else name


def _decoded(image: Image.Image, header: Facts) -> Facts:
    """What the pixels show, and the orientation where it is stored behind them."""
    jpeg.load(image)
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    facts: Facts = {"transparent": alpha is not None and bool(np.asarray(alpha).min() < 255)}
    turn = images.orientation(image)
    if turn != 1 and header["orientation"] == 1:
        facts["orientation"] = turn
        if turn >= 5:
            facts |= {"width": header["height"], "height": header["width"]}
    return facts | _appearance(images.upright_rgb(image))


def _appearance(image: Image.Image) -> Facts:
    """Measure an upright RGB image, at a short side of 256 pixels where it is larger.

    Shares of white, from 0 to 1: `brightness` (the mean), `darkest` and `brightest` (all but the
    outer 2% of the pixels lie between them), `contrast` (their difference), and `colour` (how far
    the most colourful spot is from grey). `words`: see `background_share`. `sharpness`, from 0 to
    1: see `_sharpness`.
    `perceptual_hash`: 64 bits in hexadecimal, which hardly change when an image is scaled or
    compressed (https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html).
    `thumbnail`: the bytes of 24 x 24 RGB pixels.
    """
    grey = image.convert("L")
    if (scale := _SIDE / min(grey.size)) < 1:
        size = max(1, round(scale * grey.width)), max(1, round(scale * grey.height))
        grey = grey.resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
    shares = np.cumsum(grey.histogram()) / (grey.width * grey.height)
    darkest, brightest = np.searchsorted(shares, [_TAIL, 1 - _TAIL]) / 255
    small = image.resize((_HASHED_SIDE, _HASHED_SIDE), Image.Resampling.BOX)  # fast, and enough
    thumbnail = small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return {
        "brightness": float(np.asarray(grey).mean()) / 255,
        "darkest": float(darkest),
        "brightest": float(brightest),
        "contrast": float(brightest - darkest),
        "colour": float(np.ptp(np.asarray(thumbnail), axis=2).max()) / 255,
        "sharpness": _sharpness(grey),
        "words": background_share(image),
        "perceptual_hash": str(imagehash.phash(small)),
        "thumbnail": thumbnail.tobytes(),
    }


def _sharpness(grey: Image.Image) -> float:
    """The share of the differences between neighbouring pixels that a blur removes, from 0 to 1.

    1 less the measure of Crete et al., "The blur effect: perception and estimation with a new
    no-reference perceptual blur metric", 2007; 1 for an image without any edge.
    """
    pair = [np.asarray(one).astype(np.int16) for one in (grey, grey.filter(_BLUR))]
    total = lost = 0
    for axis in (0, 1):
        differences, blurred = (np.abs(np.diff(pixels, axis=axis)) for pixels in pair)
        total += int(differences.sum(dtype=np.int64))
        lost += int(np.maximum(differences - blurred, 0).sum(dtype=np.int64))
    return lost / total if total else 1.0


_BATCH = 256  # files whose facts are written together
_PATIENCE_S = 60.0  # while another process writes
_TABLE = "facts_4"  # change the number when the facts change their meaning

_CREATE = f"""CREATE TABLE IF NOT EXISTS {_TABLE}
(path BLOB PRIMARY KEY, key TEXT, facts TEXT, thumbnail BLOB)"""
_FIND = f"SELECT facts, thumbnail FROM {_TABLE} WHERE path = ? AND key = ?"
_ADD = f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?)"


class _FactStore:
    """Facts by a file's path and `decoding_key`, in a SQLite file.

    A process that is killed loses the facts of its last files. A store that cannot be used warns
    once and stays empty.
    """

    def __init__(self, cache_dir: str | Path):
        self.path = user_path(cache_dir) / "facts.sqlite3"
        self._waiting: list[tuple] = []
        self._usable = True

    def find(self, paths: Iterable[Path]) -> dict[Path, Facts]:
        """The facts of those files that are known and have not changed."""
        found: dict[Path, Facts] = {}

        def look_up(database: sqlite3.Connection) -> None:
            for path in paths:
                with suppress(OSError):  # nothing is known of a missing file
                    known_as = _place(path), images.decoding_key(path)
                    if row := database.execute(_FIND, known_as).fetchone():
                        found[path] = json.loads(row[0]) | {"thumbnail": row[1]}

        self._attempt(look_up)
        return found

    def add(self, path: Path, facts: Facts) -> None:
        """Remember the facts of a file; `write` writes the last ones."""
        plain = json.dumps({name: facts[name] for name in facts if name != "thumbnail"})
        self._waiting.append((_place(path), facts["key"], plain, facts["thumbnail"]))
        if len(self._waiting) >= _BATCH:
            self.write()

    def write(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._attempt(lambda database: database.executemany(_ADD, waiting))

    def _attempt(self, action: Callable[[sqlite3.Connection], object]) -> None:
        """Run an action in one transaction; after a failure, warn and never try again."""
        if not self._usable:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_PATIENCE_S)) as database, database:
                database.execute(_CREATE)
                action(database)
        except (OSError, ValueError, sqlite3.Error) as error:
            self._usable = False
            warnings.warn(
                f"{self.path} cannot be used ({error}): every image is read again next time. "
                "Delete that file, or give another cache_dir.",
                stacklevel=3,
            )


def _place(path: Path) -> bytes:
    return os.fsencode(os.path.abspath(path))
