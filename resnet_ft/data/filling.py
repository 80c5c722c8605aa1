"""Decoding photographs once: in parallel, into the cache, with the reasons of those that fail."""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from resnet_ft.data.cache import NOT_STORED, UNKNOWN, CacheFile, append_pixels, file_keys
from resnet_ft.data.decoded import DecodedImages
from resnet_ft.data.paths import PathArray
from resnet_ft.errors import ImageError
from resnet_ft.files import default_cache_dir
from resnet_ft.progress import progress_bar

_FEW = 64  # not worth starting worker processes for
_CHUNK = 8


def decode_once(
    paths: Iterable[str | Path],
    side: int,
    *,
    cache_dir: str | Path | None = None,
    cache_size_gb: float | None = None,
    num_workers: int = 0,
) -> tuple[DecodedImages, dict[int, str]]:
    """Decode every file that is not in the cache, and say of each that cannot be read why.

    Returns the photographs, in the order of `paths`, and reasons by row. Workers decode and store,
    under a progress bar. The cache lies in `cache_dir` (the user's cache folder) and takes up to
    `cache_size_gb` GiB (what the disk has, but for one; 0 stores nothing). A second process that
    wants the same cache waits for the first and finds the work done.
    """
    paths = PathArray(paths)
    file = CacheFile(Path(cache_dir or default_cache_dir()) / "images", side)
    try:
        with file.locked():
            images, reasons = _fill(file, paths, cache_size_gb, num_workers)
    except OSError as error:
        images, reasons = DecodedImages(paths, side), {}
        for i, *_, reason in _decode(images, np.arange(len(paths)), None, 0, num_workers):
            reasons |= {i: reason} if reason else {}
        why = f"cannot be written ({error.strerror or error})"
        _warn_not_stored(file, len(paths) - len(reasons), len(paths), why)
    return images, reasons


def _fill(
    file: CacheFile, paths: PathArray, size_gb: float | None, num_workers: int
) -> tuple[DecodedImages, dict[int, str]]:
    """Store what is missing; the caller holds the file's lock."""
    keys, limit, reasons = file_keys(paths, file.side), file.limit(size_gb), {}
    records = file.find(keys)
    missing = np.flatnonzero(records["offset"] < (0 if file.has_room(1, limit) else NOT_STORED))
    if limit and not file.has_room(len(missing), limit) and file.is_mostly_other(records):
        file.start_anew()
        records, missing = file.find(keys), np.arange(len(keys))
    images = DecodedImages(paths, file.side, pixels=file.pixels, records=records)
    for i, offset, height, width, reason in _decode(
        images, missing, file.pixels, limit, num_workers
    ):
        if reason is None:
            records[i] = keys[i], offset, height, width
            file.append(records[i : i + 1])
        else:
            reasons[i] = reason
    not_stored = np.count_nonzero(records["offset"] == NOT_STORED)
    if not_stored and size_gb != 0:
        _warn_not_stored(file, not_stored, len(paths), "is full, or the disk is,")
    return images, reasons


def _decode(
    images: DecodedImages, rows: np.ndarray, pixels: Path | None, limit: int, num_workers: int
) -> Iterator[tuple[int, int, int, int, str | None]]:
    """Decode the photographs in `rows` and store them: row, offset, height, width, reason."""
    chunks = (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))
    decoding = DataLoader(
        _Decoding(images, pixels, limit),
        batch_sampler=chunks,
        collate_fn=list,
        num_workers=num_workers if len(rows) >= _FEW else 0,
        generator=torch.Generator(),  # or else it would draw from everybody's
    )
    with progress_bar(None, "Decoding images", len(rows)) as progress:
        for chunk in decoding:
            yield from chunk
            progress.update(len(chunk))


class _Decoding(Dataset):
    def __init__(self, images: DecodedImages, pixels: Path | None, limit: int):
        self.images = images
        self.pixels = pixels
        self.limit = limit

    def __getitem__(self, row: int) -> tuple[int, int, int, int, str | None]:
        try:
            image = self.images.decode(row)
        except ImageError as error:
            return int(row), UNKNOWN, 0, 0, error.reason
        offset = append_pixels(self.pixels, image, self.limit) if self.pixels else NOT_STORED
        return int(row), offset, *image.shape[:2], None


def _warn_not_stored(file: CacheFile, count: int, total: int, why: str) -> None:
    warnings.warn(
        f"The cache of decoded photographs {why} in {file.directory}: {count} of {total} are "
        "decoded again in every epoch. Make room there, or give another cache_dir.",
        stacklevel=4,
    )
