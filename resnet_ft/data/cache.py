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
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, Dataset

from resnet_ft.data.folders import PathArray
from resnet_ft.data.images import Opener, decoding_key, opener_key, read_image
from resnet_ft.data.ranges import KINDS, Ranges, RangeUndecided, decide_range
from resnet_ft.errors import ImageError
from resnet_ft.files import DiskBudget, atomic_write, default_cache_dir, user_path
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

    With `side`, the short side has that many pixels, by `interpolation` (see `resized`). `ranges`
    are of values beyond 8 bits (see `decide_range`). With `opener`, that function makes a PIL image
    of each path in place of `open_image`. What `decode_once` stored is read from memory that all
    processes share; any other image is decoded to the same pixels when it is asked for, and raises
    ImageError if it cannot be.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        side: int | None = None,
        *,
        interpolation: str = "bilinear",
        ranges: Ranges | None = None,
        opener: Opener | None = None,
        pixels: Path | None = None,
        records: np.ndarray | None = None,
    ) -> None:
        self.paths = paths if isinstance(paths, PathArray) else PathArray(paths)
        self.side = side
        self.interpolation = interpolation
        self.ranges: Ranges = ranges or {}
        self.opener = opener
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

    def decode(self, i: int, *, decided: bool = True) -> np.ndarray:
        """The image from its file, whether it is stored or not. `decided`: see `open_resized`."""
        image = read_image(
            *(self.paths[i], self.side, self.interpolation),
            ranges=self.ranges,
            opener=self.opener,
            decided=decided,
        )
        return np.array(image)

    def take(self, rows: np.ndarray) -> "DecodedImages":
        """The images in these rows."""
        return DecodedImages(
            self.paths.take(rows),
            self.side,
            interpolation=self.interpolation,
            ranges=self.ranges,
            opener=self.opener,
            pixels=self._pixels,
            records=self._records[rows],
        )

    def keys(self) -> np.ndarray:
        """A number for each file and how it is decoded (see `decoding_key`); 0 for a missing one.

        Without ranges, those of files of 8 bits: no range changes their pixels.
        """
        keys = np.zeros(len(self.paths), np.uint64)
        options = [self.side, self.ranges or "", opener_key(self.opener)]
        options += [] if self.interpolation == "bilinear" else [self.interpolation]
        for i, path in enumerate(self.paths):
            with suppress(OSError):
                keys[i] = int(decoding_key(path, *options), 16)
        return keys

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": None}  # each process maps the file itself


def decode_once(
    paths: Iterable[str | Path],
    side: int,
    *,
    interpolation: str = "bilinear",
    ranges: Ranges | None = None,
    opener: Opener | None = None,
    cache_dir: str | Path | None = None,
    cache_size_gb: float | None = None,
    num_workers: int = 0,
) -> tuple[DecodedImages, dict[int, str]]:
    """Decode every file that is not in the cache; returns the images and why some cannot be read.

    The images are in the order of `paths`, the reasons by row. The cache is in `cache_dir`
    (default: the user's cache folder) and takes up to `cache_size_gb` GiB (default: what the disk
    has, less one; 0 stores nothing). A second process waits and finds the work done. The other
    options are those of `DecodedImages`; without ranges, the files together decide about them.
    """
    images = DecodedImages(paths, side, interpolation=interpolation, opener=opener)
    file = CacheFile(user_path(cache_dir or default_cache_dir()) / "images", side)
    try:
        with file.locked():
            return _fill(file, images, ranges, cache_size_gb, num_workers)
    except OSError as error:
        reasons, samples = _decode(images, np.arange(len(images)), num_workers, decided=False)
        images.ranges = _decided(samples, images, ranges)
        why = f"cannot be written ({error.strerror or error})"
        _warn_not_stored(file, len(images) - len(reasons), len(images), why)
        return images, reasons


def _fill(
    file: "CacheFile",
    images: DecodedImages,
    ranges: Ranges | None,
    size_gb: float | None,
    num_workers: int,
) -> tuple[DecodedImages, dict[int, str]]:
    """Store what is missing; the caller holds the file's lock."""
    keys, budget = images.keys(), file.budget(size_gb)
    records, in_use = file.find(keys), [file.pixels]
    likely_bytes = 4 * file.side**2  # of an image of the usual 4:3
    has_room = budget.make_room(likely_bytes, in_use=in_use)
    missing = _missing(records, has_room=has_room)
    has_room = budget.make_room(len(missing) * likely_bytes, in_use=in_use)
    own_bytes = _sizes(records).sum() + likely_bytes * np.count_nonzero(records["width"] < 0)
    if budget.limit and not has_room and own_bytes < budget.used / 2:
        file.reset()  # most of it is other images
        records, missing = file.find(keys), np.arange(len(keys))
    images = DecodedImages(
        images.paths,
        file.side,
        interpolation=images.interpolation,
        opener=images.opener,
        pixels=file.pixels,
        records=records,
    )
    storing = _Storing(file, keys, records, budget.limit)
    reasons, samples = _decode(images, missing, num_workers, storing, decided=False)
    deep = np.flatnonzero(records["width"] < 0)  # files of which a sample is stored, or was taken
    if len(deep):
        samples |= {row: file.sample(records[row]) for row in deep.tolist() if row not in samples}
        images.ranges = _decided(samples, images, ranges)
        keys[deep] = images.take(deep).keys()
        records[deep] = file.find(keys[deep])
        missing = deep[_missing(records[deep], has_room=has_room)]
        more, _ = _decode(images, missing, num_workers, storing)
        reasons |= more
    not_stored = int(np.count_nonzero(records["offset"] == _NOT_STORED))
    if not_stored and size_gb != 0:
        _warn_not_stored(file, not_stored, len(images), "is full, or the disk is,")
    return images, reasons


def _missing(records: np.ndarray, *, has_room: bool) -> np.ndarray:
    return np.flatnonzero(records["offset"] < (0 if has_room else _NOT_STORED))


Samples = dict[int, tuple[str, np.ndarray]]  # by row: the kind of values beyond 8 bits, and some


def _decided(samples: Samples, images: DecodedImages, given: Ranges | None) -> Ranges:
    """The given ranges, or else, and said, those that the samples of all files decide."""
    if given is not None or not samples:
        return given or {}
    ranges = {}
    for kind in KINDS:
        if values := [some for found, some in samples.values() if found == kind]:
            low, high = ranges[kind] = decide_range(kind, values)
            print(
                f"{len(values)} of {len(images)} images hold values beyond 8 bits ({kind}). In all "
                f"of them, {low:g} becomes black and {high:g} white; a model trained on them keeps "
                "that. Give open_image= to convert them in another way."
            )
    return ranges


def _warn_not_stored(file: "CacheFile", count: int, total: int, why: str) -> None:
    warnings.warn(
        f"The cache of decoded images {why} in {file.directory}: {count} of {total} are decoded "
        "again in every epoch. Make room there, or give another cache_dir.",
        stacklevel=4,
    )


@dataclass
class _Storing:
    """Where decoded images go: a cache, and the keys and records of a data set in it."""

    file: "CacheFile"
    keys: np.ndarray
    records: np.ndarray
    limit: int


def _decode(
    images: DecodedImages,
    rows: np.ndarray,
    num_workers: int,
    storing: _Storing | None = None,
    *,
    decided: bool = True,
) -> tuple[dict[int, str], Samples]:
    """Decode the images in `rows` and store them: why some cannot be read, and samples by row.

    With `decided=False`, a sample of its values is stored of an image that needs a range.
    """
    starts = range(0, len(rows), _CHUNK)
    pixels, limit = (storing.file.pixels, storing.limit) if storing else (None, 0)
    loader = DataLoader(
        _Decoding(images, pixels, limit, decided),
        batch_sampler=(rows[start : start + _CHUNK].tolist() for start in starts),
        collate_fn=list,
        num_workers=num_workers if len(rows) >= _FEW else 0,
        generator=torch.Generator(),  # else it would draw from the default one
    )
    reasons: dict[int, str] = {}
    samples: Samples = {}
    with progress_bar(None, "Decoding images", len(rows)) as progress:
        for row, offset, height, width, found in chain.from_iterable(loader):
            progress.update()
            if isinstance(found, str):
                reasons[row] = found
                continue
            if found is not None:
                samples[row] = KINDS[_kind(width)], found
            if storing:
                storing.records[row] = storing.keys[row], offset, height, width
                if found is None or offset >= 0:  # a sample that found no room is taken again
                    storing.file.append(storing.records[row : row + 1])
    return reasons, samples


@dataclass
class _Decoding(Dataset):
    images: DecodedImages
    pixels: Path | None
    limit: int
    decided: bool

    def __getitem__(self, row: int) -> tuple[int, int, int, int, str | np.ndarray | None]:
        """Row, offset, height and width; why the image cannot be read, or a sample of it."""
        try:
            image = self.images.decode(row, decided=self.decided)
        except RangeUndecided as undecided:
            values = undecided.values
            width = _kind(KINDS.index(undecided.kind))
            return row, self._append(values), len(values), width, values
        except ImageError as error:
            return row, _UNKNOWN, 0, 0, error.reason
        height, width, _ = image.shape
        return row, self._append(image), height, width, None

    def _append(self, array: np.ndarray) -> int:
        """Append to the pixel file, as several processes may at once; the offset if it fits."""
        if self.pixels is not None:
            with open(self.pixels, "ab", buffering=0) as pixels:
                if os.fstat(pixels.fileno()).st_size + array.nbytes <= self.limit:
                    with suppress(OSError):  # the disk is full or has been removed
                        if pixels.write(array.tobytes()) == array.nbytes:
                            return pixels.tell() - array.nbytes
        return _NOT_STORED


def _kind(number: int) -> int:
    """A kind of values as the width of a record, and back: -1 is the first of `KINDS`."""
    return -1 - number


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

    def sample(self, record: np.ndarray) -> tuple[str, np.ndarray]:
        """The kind and the values that were stored of an image that needs a range."""
        _, offset, height, width = record.tolist()
        return KINDS[_kind(width)], np.fromfile(self.pixels, np.float32, height, offset=offset)

    def append(self, records: np.ndarray) -> None:
        """Add records, over the part of a record that a killed process may have left."""
        with self._index.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(size - size % _RECORD.itemsize)
            file.truncate()
            file.write(records.tobytes())


def _sizes(records: np.ndarray) -> np.ndarray:
    """How many bytes the image, or the sample, of each record has."""
    sizes = records["height"].astype(float) * records["width"] * 3
    return np.where(records["offset"] < 0, 0, sizes)
