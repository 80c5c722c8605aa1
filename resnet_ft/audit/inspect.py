"""What an image looks like, in a few numbers: light, sharpness, colour, and what it resembles."""

import hashlib
import json
import os
import sqlite3
import stat
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import IO, TypeVar

import imagehash
import numpy as np
from PIL import Image, ImageFilter, UnidentifiedImageError

from resnet_ft.data.images import (
    orientation,
    readable_formats,
    unreadable_because,
    upright_rgb,
    upright_size,
)
from resnet_ft.notebook import progress_bar

SIDE = 256  # pixels of the short side at which an image is looked at, about what a network sees
THUMBNAIL = 24  # pixels of a thumbnail's side: enough to tell one photograph from another
_FEW = 72  # pixels
_TAIL = 0.02  # share of the pixels that may be darker than `darkest`, or brighter than `brightest`


def appearance(image: Image.Image) -> dict[str, float | str | bytes]:
    """Measure an upright RGB image, at a short side of 256 pixels where it is larger.

    Shares of white, from 0 to 1: `brightness` (the mean), `darkest` and `brightest` (all but the
    outer 2% of the pixels lie between them), `contrast` (their difference), and `colour` (how far
    the most colourful spot is from grey). `sharpness`, from 0 to 1: see `_sharpness`.
    `perceptual_hash`: 64 bits in hexadecimal, which hardly change when an image is scaled or
    compressed (https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html).
    `thumbnail`: the bytes of 24 x 24 RGB pixels.
    """
    grey = _at_most(image.convert("L"), SIDE)
    shares = np.cumsum(grey.histogram()) / (grey.width * grey.height)
    darkest, brightest = np.searchsorted(shares, [_TAIL, 1 - _TAIL]) / 255
    small = image.resize((_FEW, _FEW), Image.Resampling.BOX)  # fast, and enough for what follows
    thumbnail = small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return {
        "brightness": float(np.asarray(grey).mean()) / 255,
        "darkest": float(darkest),
        "brightest": float(brightest),
        "contrast": float(brightest - darkest),
        "colour": float(np.ptp(np.asarray(thumbnail), axis=2).max()) / 255,
        "sharpness": _sharpness(grey),
        "perceptual_hash": str(imagehash.phash(small)),
        "thumbnail": thumbnail.tobytes(),
    }


def _at_most(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    if scale >= 1:
        return image
    size = tuple(max(1, round(scale * length)) for length in image.size)
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2)


def _sharpness(grey: Image.Image) -> float:
    """Which share of the differences between neighbouring pixels a blur takes away, from 0 to 1.

    A sharp image loses most of them, a blurred one has little to lose: the measure of Crete et al.,
    "The blur effect: perception and estimation with a new no-reference perceptual blur metric",
    2007, turned round. It depends on neither light nor contrast; 1 for an image without any edge.
    """
    differences, blurred = _differences(grey), _differences(grey.filter(ImageFilter.BoxBlur(3)))
    total = differences.sum(dtype=np.int64)
    lost = np.maximum(differences - blurred, 0).sum(dtype=np.int64)
    return float(lost / total) if total else 1.0


def _differences(grey: Image.Image) -> np.ndarray:
    pixels = np.asarray(grey).astype(np.int16)
    vertical, horizontal = np.abs(np.diff(pixels, axis=0)), np.abs(np.diff(pixels, axis=1))
    return np.concatenate([vertical.ravel(), horizontal.ravel()])


_BATCH = 256  # files whose facts are written together
_PATIENCE_S = 60.0  # while another process writes
_TABLE = "facts_1"  # another number where the facts change their meaning

_CREATE = f"""CREATE TABLE IF NOT EXISTS {_TABLE}
(path BLOB PRIMARY KEY, bytes INTEGER, changed_ns INTEGER, facts TEXT, thumbnail BLOB)"""
_FIND = f"SELECT facts, thumbnail FROM {_TABLE} WHERE path = ? AND bytes = ? AND changed_ns = ?"
_KEEP = f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?, ?)"

_Result = TypeVar("_Result")


class FactStore:
    """Facts by a file's path, size and time of change: of a file that changed nothing is known.

    Facts are dictionaries of plain values, among them `bytes` and `changed_ns`, and a `thumbnail`
    of bytes. They are written some hundred at a time, and each time whole: a process that is killed
    loses its last ones and harms nothing. A store that cannot be used warns and knows nothing.
    """

    def __init__(self, cache_dir: str | Path):
        self.path = Path(cache_dir) / "facts.sqlite3"
        self._waiting: list[tuple] = []
        self._usable = True
        self._attempt(lambda database: database.execute(_CREATE))

    def __enter__(self) -> "FactStore":
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def find(self, paths: Iterable[Path]) -> dict[Path, dict]:
        """The facts of those files that are known."""
        return self._attempt(lambda database: dict(_known(database, paths))) or {}

    def keep(self, path: Path, facts: dict) -> None:
        """Remember the facts of a file; the last ones are written when the store is left."""
        plain = json.dumps({name: facts[name] for name in facts if name != "thumbnail"})
        row = (_key(path), facts["bytes"], facts["changed_ns"], plain, facts["thumbnail"])
        self._waiting.append(row)
        if len(self._waiting) >= _BATCH:
            self._write()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._attempt(lambda database: database.executemany(_KEEP, waiting))

    def _attempt(self, action: Callable[[sqlite3.Connection], _Result]) -> _Result | None:
        """Do something in one transaction. What goes wrong is told, and nothing more is tried."""
        if not self._usable:
            return None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_PATIENCE_S)) as database, database:
                return action(database)
        except (OSError, ValueError, sqlite3.Error) as error:
            self._usable = False
            warnings.warn(
                f"{self.path} cannot be used ({error}): every image is read again next time. "
                "Delete that file, or give another cache_dir.",
                stacklevel=3,
            )
        return None


def _known(database: sqlite3.Connection, paths: Iterable[Path]) -> Iterator[tuple[Path, dict]]:
    for path in paths:
        with suppress(OSError):  # of a file that is not there nothing is known
            status = os.stat(path)
            identity = (_key(path), status.st_size, status.st_mtime_ns)
            if row := database.execute(_FIND, identity).fetchone():
                yield path, json.loads(row[0]) | {"thumbnail": row[1]}


def _key(path: Path) -> bytes:
    return os.fsencode(os.path.abspath(path))


_ANIMATED = frozenset({"GIF", "PNG", "WEBP", "AVIF"})  # others hold pages, previews, depth maps
_LARGE = 16_000_000  # pixels: larger images are decoded one at a time, for the sake of memory
_one_at_a_time = threading.Lock()


def inspect_files(
    paths: Sequence[Path], *, num_workers: int | None = None, cache_dir: str | Path
) -> list[dict]:
    """The facts of every file, as `inspect_file` finds them, under a progress bar.

    `num_workers` threads (one a core) read them: Pillow decodes outside of Python's lock. Facts
    are kept in `cache_dir`, and a file that did not change is not read again; one that could not
    be read is, since the reason may be gone.
    """
    with FactStore(cache_dir) as store:
        facts = store.find(paths)
        missing = [path for path in paths if path not in facts]
        for path, found in _in_parallel(missing, num_workers):
            facts[path] = found
            if "problem" not in found:
                store.keep(path, found)
    return [facts[path] for path in paths]


def _in_parallel(paths: list[Path], num_workers: int | None) -> Iterator[tuple[Path, dict]]:
    pool = ThreadPoolExecutor(os.cpu_count() if num_workers is None else max(1, num_workers))
    try:
        with warnings.catch_warnings():
            # What the decoders warn of is among the facts.
            warnings.filterwarnings("ignore", module="PIL|pillow_heif")
            found = zip(paths, pool.map(inspect_file, paths), strict=True)
            yield from progress_bar(found, "Inspecting images", len(paths))
    finally:
        pool.shutdown(cancel_futures=True)


def inspect_file(path: str | Path) -> dict:
    """What is known of one image file, as a dictionary of plain values. Never raises.

    `bytes`, `changed_ns` (time of change), `content` (a hash), `format`, `mode`, `width` and
    `height` (upright), `orientation` (EXIF), `animated`, `transparent`, and what `appearance`
    measures. For a file that cannot be read whole: what could be found out, `problem` (its kind,
    an issue of the audit) and `reason`.
    """
    facts = {}
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep us waiting for ever
            return {"problem": "unreadable", "reason": "not a file but a folder, pipe or device"}
        facts |= {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}
        with open(path, "rb") as file:
            facts["content"] = _content_hash(file)
            with Image.open(file, formats=readable_formats()) as image:
                facts |= _stored(image)
                image.draft(None, (SIDE, SIDE))  # a JPEG gets smaller; every byte is read still
                large = image.width * image.height > _LARGE
                with _one_at_a_time if large else nullcontext():
                    facts |= _decoded(image, facts)
    except Exception as error:  # a decoder can fail in any way on a broken file
        facts["problem"] = _kind_of_problem(error, facts)
        facts["reason"] = unreadable_because(path, error)
    return facts


def _content_hash(file: IO[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    while block := file.read(2**20):
        digest.update(block)
    file.seek(0)
    return digest.hexdigest()


def _stored(image: Image.Image) -> dict:
    """What a file's header says."""
    width, height = upright_size(image)
    return {
        "format": image.format,
        "mode": image.mode,
        "width": width,
        "height": height,
        "orientation": orientation(image),
        "animated": image.format in _ANIMATED and bool(getattr(image, "is_animated", False)),
    }


def _decoded(image: Image.Image, stored: dict) -> dict:
    """What the pixels say, and the orientation where it is kept behind them."""
    image.load()
    facts = {"transparent": _is_transparent(image)}
    turn = orientation(image)
    if turn != 1 and stored["orientation"] == 1:
        facts["orientation"] = turn
        if turn >= 5:
            facts |= {"width": stored["height"], "height": stored["width"]}
    return facts | appearance(upright_rgb(image))


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def _kind_of_problem(error: Exception, facts: dict) -> str:
    if facts.get("bytes") == 0:
        return "empty file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return "decompression bomb"
    return "truncated" if "truncated" in str(error) else "unreadable"
