"""The file that keeps decoded photographs: who writes to it, and how it is never half a one.

A cache is two files. The index begins with the number of its pixel file and goes on with a record
for each photograph; the pixel file is only ever appended to, and a record is written after the
pixels that it speaks of. So whenever a process is killed, what the index names is whole; and a
cache that starts anew has another pixel file, so that no reader ever takes new pixels for old ones.
"""

import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from resnet_ft.files import atomic_write, fingerprint

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
