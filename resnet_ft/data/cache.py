"""The decode-once cache: every photograph is decoded once, in parallel, and read by all workers.

A cache is two files. The index begins with the number of its pixel file and goes on with a record
for each photograph; the pixel file is only ever appended to, and a record is written after the
pixels that it speaks of. So whenever a process is killed, what the index names is whole; and a
cache that starts anew has another pixel file, so that no reader ever takes new pixels for old ones.
"""

import math
import os
import secrets
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, Dataset

from resnet_ft.data.folders import PathArray
from resnet_ft.data.images import open_image, open_resized
from resnet_ft.errors import ImageError
from resnet_ft.files import atomic_write, default_cache_dir, fingerprint
from resnet_ft.notebook import progress_bar

_RECORD = np.dtype([("key", "<u8"), ("offset", "<i8"), ("height", "<i4"), ("width", "<i4")])
# In place of an offset: never decoded, or found readable where there was no room for it.
UNKNOWN, NOT_STORED = -2, -1
_FORMAT = 1  # to be raised with any change of how photographs are decoded or resized
_RESERVE = 2**30  # bytes of the disk that are left to others


class CacheFile:
    """The decoded photographs of one side length in one directory."""

    def __init__(self, directory: Path, side: int):
        self.directory = Path(directory)
        self.side = side
        self._index = self.directory / f"decoded-{side}-v{_FORMAT}.index"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing, and begin a cache where there is none.

        The system unlocks it for a process that is killed.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._index.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"Another process decodes photographs into {self.directory}: waiting for it.")
            lock.acquire()
        try:
            if not self._is_whole():
                self.start_anew()
            yield
        finally:
            lock.release()

    def find(self, keys: np.ndarray) -> np.ndarray:
        """A record for each key, with UNKNOWN for an offset where there is none."""
        found, records = no_records(len(keys)), self._records()
        if len(records):
            places = np.searchsorted(records["key"], keys, side="right") - 1  # the newest of a key
            known = records["key"][places] == keys
            found[known] = records[places[known]]
        return found

    def _records(self) -> np.ndarray:
        """What is stored, sorted by key."""
        records = np.fromfile(self._index, _RECORD)[1:]
        ends = records["offset"] + _sizes(records)
        records = records[ends <= self._size()]
        return records[np.argsort(records["key"], kind="stable")]

    def _is_whole(self) -> bool:
        try:
            return self.pixels.is_file()
        except (OSError, IndexError):  # no index, or an empty one
            return False

    @property
    def pixels(self) -> Path:
        """The pixel file that the index speaks of."""
        number = int(np.fromfile(self._index, _RECORD, count=1)["key"][0])
        return self.directory / f"{self._index.stem}-{number:016x}.pixels"

    def start_anew(self) -> None:
        """Forget all records. Who still reads the old pixel file keeps it until they are done."""
        head = np.zeros(1, _RECORD)
        head["key"] = secrets.randbits(63)
        with atomic_write(self._index) as temporary:
            head.tofile(temporary)
        kept = self.pixels
        kept.touch()
        for old in self.directory.glob(f"{self._index.stem}-*.pixels"):
            if old != kept:
                with suppress(OSError):  # Windows does not delete a file that is being read
                    old.unlink()

    def append(self, records: np.ndarray) -> None:
        """Add records, over what a killed process left of half a one."""
        with self._index.open("r+b") as file:
            whole = os.fstat(file.fileno()).st_size // _RECORD.itemsize * _RECORD.itemsize
            file.seek(whole)
            file.truncate()
            file.write(records.tobytes())

    def limit(self, size_gb: float | None) -> int:
        """How large the pixel file may become, in bytes: as asked for, and as the disk allows."""
        free = max(0, shutil.disk_usage(self.directory).free - _RESERVE)
        wanted = math.inf if size_gb is None else size_gb * 2**30
        return int(min(wanted, self._size() + free))

    def _size(self) -> int:
        return self.pixels.stat().st_size

    def has_room(self, count: int, limit: int) -> bool:
        """Whether so many photographs of the usual 4:3 are likely to fit."""
        return self._size() + count * self.side**2 * 4 <= limit

    def is_mostly_other(self, records: np.ndarray) -> bool:
        """Whether these records need less than half of what the file holds."""
        return _sizes(records).sum() < self._size() / 2


def append_pixels(file: Path, image: np.ndarray, limit: int) -> int:
    """Store one image at the end of a pixel file: its offset, or NOT_STORED without room.

    Several processes may do so at once, since the system appends what each of them writes whole.
    """
    with open(file, "ab", buffering=0) as pixels:
        if os.fstat(pixels.fileno()).st_size + image.nbytes > limit:
            return NOT_STORED
        try:
            written = pixels.write(image.tobytes())
        except OSError:  # the disk is full, or has gone
            return NOT_STORED
        return pixels.tell() - written if written == image.nbytes else NOT_STORED


def file_keys(paths: Iterable[str], side: int) -> np.ndarray:
    """A number for each file from its path, size and time of change; 0 where there is none."""
    return np.fromiter((_key(path, side) for path in paths), np.uint64)


def _key(path: str, side: int) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return 0
    return int(fingerprint([os.path.abspath(path), status.st_size, status.st_mtime_ns, side]), 16)


def no_records(count: int) -> np.ndarray:
    """Records of photographs of which nothing is known."""
    records = np.zeros(count, _RECORD)
    records["offset"] = UNKNOWN
    return records


def _sizes(records: np.ndarray) -> np.ndarray:
    sizes = records["height"].astype(np.int64) * records["width"] * 3
    return np.where(records["offset"] < 0, 0, sizes)


class DecodedImages(Sequence[np.ndarray]):
    """Upright RGB photographs as uint8 arrays of shape (H, W, 3), each a copy of one's own.

    With `side`, the short side is that many pixels (see `open_resized`). What `decode_once` stored
    is read from memory that all processes share; anything else is decoded when it is asked for,
    to the same pixels, and raises ImageError if it cannot be.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        side: int | None = None,
        *,
        pixels: Path | None = None,
        records: np.ndarray | None = None,
    ):
        self.paths = paths if isinstance(paths, PathArray) else PathArray(paths)
        self.side = side
        self._pixels = pixels
        self._records = no_records(len(self.paths)) if records is None else records
        self._mapped = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        _, offset, height, width = self._records[i]
        if offset >= 0 and self._map() is not None:
            end = offset + height * width * 3
            return self._mapped[offset:end].reshape(height, width, 3).copy()
        return self.decode(i)

    def decode(self, i: int) -> np.ndarray:
        """The photograph from its file, whether it is stored or not."""
        path = self.paths[i]
        return np.array(open_resized(path, self.side) if self.side else open_image(path))

    def take(self, rows: np.ndarray) -> "DecodedImages":
        """The photographs in these rows."""
        return DecodedImages(
            self.paths.take(rows), self.side, pixels=self._pixels, records=self._records[rows]
        )

    def _map(self) -> np.ndarray | None:
        if self._mapped is None and self._pixels is not None:
            try:
                self._mapped = np.asarray(np.memmap(self._pixels, np.uint8, mode="r"))
            except (OSError, ValueError):  # deleted since: photographs are decoded again
                self._pixels = None
        return self._mapped

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_mapped": None}  # a new process maps the file itself


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
