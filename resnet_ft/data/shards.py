"""What a data set in tar shards holds: `dataset.json`, and the samples of one shard.

The shards have the layout of the webdataset library: members whose names are alike up to the first
dot are a sample, `<key>.jpg` (or another image) and `<key>.cls`, its label as text.
"""

import json
import math
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO

import numpy as np
from filelock import FileLock, Timeout
from torch.utils.data import get_worker_info

from resnet_ft import distributed
from resnet_ft.data.images import IMAGE_EXTENSIONS
from resnet_ft.data.index import SPLITS
from resnet_ft.errors import DatasetError
from resnet_ft.files import default_cache_dir, fingerprint
from resnet_ft.remote import fetch, is_address

INDEX = "dataset.json"
_NAME = re.compile(r"\w[\w-]*\.tar", re.ASCII)  # none leads elsewhere, or is a command in a "pipe:"
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
_ENTRY = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i4")])


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, how many samples it has, and its size in bytes."""

    name: str
    samples: int
    bytes: int


@dataclass(frozen=True)
class ShardIndex:
    """What `dataset.json` says: class names by label, the shards of each split, a fingerprint."""

    classes: list[str]
    fingerprint: str
    splits: dict[str, list[Shard]]


def holds_shards(location: str | Path) -> bool:
    """Whether this is an address, or a folder of shards, rather than a folder of images."""
    if is_address(location):
        return True
    folder = Path(location)
    return (folder / INDEX).is_file() and any(folder.glob("*.tar"))


def place_of(location: str | Path, name: str) -> str:
    """The path or address of a file of a data set: at "{}" where `location` has it, or below it."""
    location = str(location)
    return location.replace("{}", name) if "{}" in location else f"{location.rstrip('/')}/{name}"


def read_shard_index(location: str | Path) -> ShardIndex:
    """Read `dataset.json`. Raises DatasetError where it is missing or does not describe shards."""
    place = place_of(location, INDEX)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, INDEX) if is_address(location) else Path(place)
        if is_address(location):
            fetch(place, path)
        text = path.read_bytes()
    try:
        described = json.loads(text)
        found = {
            split: [Shard(str(s["name"]), int(s["samples"]), int(s["bytes"])) for s in shards]
            for split, shards in described["splits"].items()
        }
        names = [shard.name for shards in found.values() for shard in shards]
        strange = [name for name in names if not _NAME.fullmatch(name)]
        if strange or len(set(names)) < len(names):
            raise ValueError(f"the shards should be called train-000000.tar, ..., not {strange}")
        if not all(sum(shard.samples for shard in shards) for shards in found.values()):
            raise ValueError("a split without samples")
        splits = {split: found[split] for split in SPLITS if split in found}
        classes = [str(name) for name in described["classes"]]
        return ShardIndex(classes, str(described.get("fingerprint") or fingerprint([text])), splits)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{place} does not describe shards as pack_dataset does: {type(error).__name__}: "
            f"{error}. Pack the data set anew, or check the address."
        ) from error


def list_samples(file: IO[bytes], place: str) -> tuple[list[str], np.ndarray]:
    """Keys of the samples of a shard, and a record of each: offset and size of its image, label.

    `place` is what an error calls the shard. Raises DatasetError for what is no tar file, and for a
    sample without an image or a label.
    """
    found: dict[str, dict] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                named = _MEMBER.fullmatch(member.name)
                if not (named and member.isfile()):
                    continue
                key, extension = named[1], "." + named[2].lower()
                sample = found.setdefault(key, {})
                if extension in IMAGE_EXTENSIONS:
                    sample["image"] = member.offset_data, member.size
                elif extension == ".cls":
                    file.seek(member.offset_data)
                    sample["label"] = int(file.read(member.size))
    except (tarfile.TarError, ValueError) as error:
        raise DatasetError(
            f"{place} is broken: {error}. Fetch it anew, or pack the data set anew."
        ) from error
    for key, sample in found.items():
        if len(sample) < 2:
            lacking = "label (.cls)" if "image" in sample else "image (.jpg, .png, ...)"
            raise DatasetError(f"{place}: sample {key} has no {lacking}. Pack the data set anew.")
    records = [(*sample["image"], sample["label"]) for sample in found.values()]
    return list(found), np.array(records, _ENTRY)


_RESERVE = 2**30  # bytes of the disk that are left to others
_IN_USE = 8  # shards that a process may need at about the same time: see `ShardOrder`


class ShardFiles:
    """Reads samples out of shards. Raises DatasetError for a shard that is missing or broken."""

    def __init__(
        self,
        location: str | Path,
        index: ShardIndex,
        *,
        cache_dir: str | Path | None = None,
        cache_size_gb: float | None = None,
    ):
        self._location = location
        self._num_classes = len(index.classes)
        self._is_remote = is_address(location)
        self._folder = Path(location)
        if self._is_remote:
            caches = Path(cache_dir or default_cache_dir()) / "shards"
            self._folder = caches / fingerprint([location, index])
        self._limit = math.inf if cache_size_gb is None else cache_size_gb * 2**30
        self._kept = _IN_USE * distributed.count()
        self._records: dict[str, np.ndarray] = {}
        self._fetching: Thread | None = None

    def read(self, shard: Shard, number: int, upcoming: Sequence[Shard] = ()) -> tuple[bytes, int]:
        """The image file and the label of a sample; in a worker, `upcoming` shards are fetched."""
        try:
            with self._open(shard, upcoming) as file:
                if shard.name not in self._records:
                    self._records[shard.name] = self._list(shard, file)
                offset, size, label = self._records[shard.name][number].tolist()
                file.seek(offset)
                return file.read(size), label
        except OSError as error:
            raise DatasetError(
                f"{self._place(shard)} could not be read in {self._folder}: "
                f"{error.strerror or error}. Are all shards of dataset.json there, and may files "
                "be read and written in that folder?"
            ) from error

    def name(self, shard: Shard, number: int) -> str:
        """What a person finds a sample by: the place of its shard, and its key."""
        with self._open(shard) as file:
            keys, _ = list_samples(file, self._place(shard))
        return f"{self._place(shard)}, sample {keys[number]}"

    def _place(self, shard: Shard) -> str:
        return place_of(self._location, shard.name)

    def _list(self, shard: Shard, file: IO[bytes]) -> np.ndarray:
        place, size = self._place(shard), os.fstat(file.fileno()).st_size
        if size != shard.bytes:
            raise DatasetError(
                f"{place} has {size:,} bytes, not {shard.bytes:,} as dataset.json says: it was "
                "copied in part, or changed. Copy it anew, or pack the data set anew."
            )
        _, records = list_samples(file, place)
        known = np.isin(records["label"], np.arange(self._num_classes))
        if len(records) != shard.samples or not known.all():
            raise DatasetError(
                f"{place} has {len(records)} samples of {shard.samples} that dataset.json says, "
                f"{np.count_nonzero(~known)} of them of an unknown class: it is broken, or of "
                "another data set. Copy it anew, or pack the data set anew."
            )
        return records

    def _open(self, shard: Shard, upcoming: Sequence[Shard] = ()) -> IO[bytes]:
        path = self._folder / shard.name
        if not self._is_remote:
            return path.open("rb")
        self._fetch_ahead(upcoming)
        try:
            os.utime(path)
            return path.open("rb")
        except FileNotFoundError:
            self._fetch(shard)
            return path.open("rb")

    def _fetch_ahead(self, upcoming: Sequence[Shard]) -> None:
        if get_worker_info() is None or (self._fetching and self._fetching.is_alive()):
            return  # a process that starts others by forking should have no threads
        missing = [shard for shard in upcoming if not (self._folder / shard.name).exists()]
        if missing:
            self._fetching = Thread(target=self._try_to_fetch, args=(missing,), daemon=True)
            self._fetching.start()

    def _try_to_fetch(self, shards: Sequence[Shard]) -> None:
        for shard in shards:
            with suppress(DatasetError, OSError, Timeout):  # who needs it will say what is wrong
                self._fetch(shard, timeout=0)

    def _fetch(self, shard: Shard, timeout: float = -1) -> None:
        path = self._folder / shard.name
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=timeout):
            if not path.exists():
                self._make_room(shard.bytes)
                partial = path.with_suffix(".part")
                fetch(self._place(shard), partial, shard.bytes)
                os.replace(partial, path)

    def _make_room(self, size: int) -> None:
        """Delete what was not used for longest, of other data sets too, but not what is in use."""
        cached = []
        for path in self._folder.parent.glob("*/*.tar"):
            with suppress(FileNotFoundError):  # another process deletes too
                cached.append((path.stat().st_mtime, path.stat().st_size, path))
        free = shutil.disk_usage(self._folder).free - _RESERVE
        total = sum(taken for _, taken, _ in cached)
        excess = total + size - min(self._limit, total + free)
        for _, taken, path in sorted(cached)[: 1 - self._kept]:
            if excess <= 0:
                break
            with suppress(OSError):  # Windows does not delete a file that is being read
                path.unlink(missing_ok=True)
                excess -= taken

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_fetching": None}  # a thread cannot go to another process
