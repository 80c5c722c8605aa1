"""Image files to facts: what is in each and what it looks like, or why it cannot be read."""

import hashlib
import os
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from resnet_ft.audit.appearance import SIDE, appearance
from resnet_ft.audit.facts import FactStore
from resnet_ft.data.images import (
    orientation,
    readable_formats,
    unreadable_because,
    upright_rgb,
    upright_size,
)
from resnet_ft.progress import progress_bar

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
