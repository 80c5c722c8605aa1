"""The decode-once cache: every image is decoded once, in parallel, and shared by all workers.

A cache is two files. The index holds the number of its pixel file and a record for each image; the
pixel file only grows, and a record is written after its pixels: whenever a process is killed, all
that the index names is complete. A cache that is reset gets another pixel file, so that no reader
takes new pixels for old ones.
"""

import os
import secrets
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, Dataset

from resnet_ft.data.folders import PathArray
from resnet_ft.data.images import decoding_key, open_image, open_resized
from resnet_ft.errors import ImageError
from resnet_ft.files import DiskBudget, atomic_write, default_cache_dir
from resnet_ft.notebook import progress_bar

_FORMAT = 2  # increase it with any change to how images are decoded or resized
_RECORD = np.dtype([("key", "<u8"), ("offset", "<i8"), ("height", "<i4"), ("width", "<i4")])
# Instead of an offset: never decoded, or found readable when there was no room for it.
_UNKNOWN, _NOT_STORED = -2, -1
_NO_RECORD = np.array((0, _UNKNOWN, 0, 0), _RECORD)
_FEW = 64  # images: too few to start worker processes for
_CHUNK = 8  # images that a worker decodes at a time


class DecodedImages:
    """Upright RGB images as uint8 arrays of shape (H, W, 3), copies that the caller may change.

    With `side`, the short side has that many pixels (see `open_resized`). What `decode_once` stored
    is read from memory that all processes share; any other image is decoded to the same pixels when
    it is asked for, and raises ImageError if it cannot be.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        side: int | None = None,
        *,
        pixels: Path | None = None,
        records: np.ndarray | None = None,
    ) -> None:
        self.paths = paths if isinstance(paths, PathArray) else PathArray(paths)
        self.side = side
        self._pixels = pixels
        self._records = np.full(len(self.paths), _NO_RECORD) if records is None else records
        self._mapped: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        _, offset, height, width = self._records[i]
        if offset >= 0 and self._mapped is None and self._pixels is not None:
            with suppress(OSError, ValueError):  # deleted since: images are decoded again
                self._mapped = np.asarray(np.memmap(self._pixels, np.uint8, mode="r"))
        if offset < 0 or self._mapped is None:
            return self.decode(i)
        stored = self._mapped[offset : offset + height * width * 3]
        return stored.reshape(height, width, 3).copy()

    def decode(self, i: int) -> np.ndarray:
        """The image from its file, whether it is stored or not."""
        path = self.paths[i]
        return np.array(open_resized(path, self.side) if self.side else open_image(path))

    def take(self, rows: np.ndarray) -> "DecodedImages":
        """The images in these rows."""
        return DecodedImages(
            self.paths.take(rows), self.side, pixels=self._pixels, records=self._records[rows]
        )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": None}  # each process maps the file itself


def decode_once(
    paths: Iterable[str | Path],
    side: int,
    *,
    cache_dir: str | Path | None = None,
    cache_size_gb: float | None = None,
    num_workers: int = 0,
) -> tuple[DecodedImages, dict[int, str]]:
    """Decode every file that is not in the cache; returns the images and why some cannot be read.

    The images are in the order of `paths`, the reasons by row. The cache is in `cache_dir`
    (default: the user's cache folder) and takes up to `cache_size_gb` GiB (default: what the disk
    has, less one; 0 stores nothing). A second process waits and finds the work done.
    """
    paths = PathArray(paths)
    file = CacheFile(Path(cache_dir or default_cache_dir()) / "images", side)
    try:
        with file.locked():
            return _fill(file, paths, cache_size_gb, num_workers)
    except OSError as error:
        images = DecodedImages(paths, side)
        decoded = _decode(images, np.arange(len(paths)), None, 0, num_workers)
        reasons = {row: reason for row, *_, reason in decoded if reason}
        why = f"cannot be written ({error.strerror or error})"
        _warn_not_stored(file, len(paths) - len(reasons), len(paths), why)
        return images, reasons


def _fill(
    file: "CacheFile", paths: PathArray, size_gb: float | None, num_workers: int
) -> tuple[DecodedImages, dict[int, str]]:
    """Store what is missing; the caller holds the file's lock."""
    keys, budget = file_keys(paths, file.side), file.budget(size_gb)
    records, in_use = file.find(keys), [file.pixels]
    likely_bytes = 4 * file.side**2  # of an image of the usual 4:3
    has_room = budget.make_room(likely_bytes, in_use=in_use)
    missing = np.flatnonzero(records["offset"] < (0 if has_room else _NOT_STORED))
    has_room = budget.make_room(len(missing) * likely_bytes, in_use=in_use)
    if budget.limit and not has_room and _sizes(records).sum() < budget.used / 2:
        file.reset()  # most of it is other images
        records, missing = file.find(keys), np.arange(len(keys))
    images = DecodedImages(paths, file.side, pixels=file.pixels, records=records)
    reasons: dict[int, str] = {}
    decoded = _decode(images, missing, file.pixels, budget.limit, num_workers)
    for row, offset, height, width, reason in decoded:
        if reason is None:
            records[row] = keys[row], offset, height, width
            file.append(records[row : row + 1])
        else:
            reasons[row] = reason
    not_stored = int(np.count_nonzero(records["offset"] == _NOT_STORED))
    if not_stored and size_gb != 0:
        _warn_not_stored(file, not_stored, len(paths), "is full, or the disk is,")
    return images, reasons


def _warn_not_stored(file: "CacheFile", count: int, total: int, why: str) -> None:
    warnings.warn(
        f"The cache of decoded images {why} in {file.directory}: {count} of {total} are decoded "
        "again in every epoch. Make room there, or give another cache_dir.",
        stacklevel=4,
    )


def _decode(
    images: DecodedImages, rows: np.ndarray, pixels: Path | None, limit: int, num_workers: int
) -> Iterator[tuple[int, int, int, int, str | None]]:
    """Decode the images in `rows` and store them: row, offset, height, width, reason."""
    starts = range(0, len(rows), _CHUNK)
    loader = DataLoader(
        _Decoding(images, pixels, limit),
        batch_sampler=(rows[start : start + _CHUNK].tolist() for start in starts),
        collate_fn=list,
        num_workers=num_workers if len(rows) >= _FEW else 0,
        generator=torch.Generator(),  # else it would draw from the default one
    )
    with progress_bar(None, "Decoding images", len(rows)) as progress:
        for chunk in loader:
            yield from chunk
            progress.update(len(chunk))


@dataclass
class _Decoding(Dataset):
    images: DecodedImages
    pixels: Path | None
    limit: int

    def __getitem__(self, row: int) -> tuple[int, int, int, int, str | None]:
        try:
            image = self.images.decode(row)
        except ImageError as error:
            return row, _UNKNOWN, 0, 0, error.reason
        height, width, _ = image.shape
        return row, self._append(image), height, width, None

    def _append(self, image: np.ndarray) -> int:
        """Append to the pixel file, as several processes may at once; the offset if it fits."""
        if self.pixels is not None:
            with open(self.pixels, "ab", buffering=0) as pixels:
                if os.fstat(pixels.fileno()).st_size + image.nbytes <= self.limit:
                    with suppress(OSError):  # the disk is full or has been removed
                        if pixels.write(image.tobytes()) == image.nbytes:
                            return pixels.tell() - image.nbytes
        return _NOT_STORED


class CacheFile:
    """The decoded images of one short side in a directory: an index and a pixel file."""

    def __init__(self, directory: Path, side: int) -> None:
        self.directory = Path(directory)
        self.side = side
        self._index = self.directory / f"decoded-{side}-v{_FORMAT}.index"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing, and create the cache if there is none."""
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._index.with_suffix(".lock"))
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            print(f"Another process is decoding images into {self.directory}. Waiting for it.")
            held = lock.acquire()
        with held:
            try:
                is_complete = self.pixels.is_file()
            except (OSError, IndexError):  # no index, or an empty one
                is_complete = False
            if not is_complete:
                self.reset()
            yield

    @property
    def pixels(self) -> Path:
        """The pixel file that the index names."""
        number = int(np.fromfile(self._index, _RECORD, count=1)["key"][0])
        return self.directory / f"{self._index.stem}-{number:016x}.pixels"

    def reset(self) -> None:
        """Forget all records. Processes that read the old pixel file keep it until they end."""
        head = np.zeros(1, _RECORD)
        head["key"] = secrets.randbits(63)
        with atomic_write(self._index) as temporary:
            head.tofile(temporary)
        self.pixels.touch()
        self.budget(size_gb=0).make_room(0, in_use=[self.pixels])

    def budget(self, size_gb: float | None) -> DiskBudget:
        """How large the pixel file may become."""
        return DiskBudget(self.directory, f"{self._index.stem}-*.pixels", size_gb)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """A record for each key, with _UNKNOWN for an offset where there is none."""
        found, records = np.full(len(keys), _NO_RECORD), np.fromfile(self._index, _RECORD)[1:]
        end = self.pixels.stat().st_size - _sizes(records)  # a damaged record may say anything
        stored = (records["height"] > 0) & (records["width"] > 0) & (records["offset"] <= end)
        records = records[stored | (records["offset"] == _NOT_STORED)]
        if len(records):
            records = records[np.argsort(records["key"], kind="stable")]
            places = np.searchsorted(records["key"], keys, side="right") - 1  # the newest of a key
            known = records["key"][places] == keys
            found[known] = records[places[known]]
        return found

    def append(self, records: np.ndarray) -> None:
        """Add records, over the part of a record that a killed process may have left."""
        with self._index.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(size - size % _RECORD.itemsize)
            file.truncate()
            file.write(records.tobytes())


def _sizes(records: np.ndarray) -> np.ndarray:
    """How many bytes of pixels the image of each record has."""
    sizes = records["height"].astype(float) * records["width"] * 3
    return np.where(records["offset"] < 0, 0, sizes)


def file_keys(paths: PathArray, side: int) -> np.ndarray:
    """A number for each file from `decoding_key` and the side; 0 where there is no file."""
    keys = np.zeros(len(paths), np.uint64)
    for i, path in enumerate(paths):
        with suppress(OSError):
            keys[i] = int(decoding_key(path, side), 16)
    return keys
