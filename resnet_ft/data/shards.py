"""Tar shards, which may be remote and larger than the disk: described, fetched and read.

They have the layout of the webdataset library: a sample is `<key>.jpg` (or another image) and
`<key>.cls`, its label as text. `dataset.json` beside them says what they hold.
"""

import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import get_worker_info

from resnet_ft import distributed
from resnet_ft.data.batches import EpochBatchSampler
from resnet_ft.data.dataset import SeededDataset, seed_of
from resnet_ft.data.folders import find_images, subfolders
from resnet_ft.data.images import IMAGE_EXTENSIONS, open_resized
from resnet_ft.data.index import SPLITS
from resnet_ft.data.transforms import Preprocessing
from resnet_ft.errors import DatasetError, ImageError
from resnet_ft.files import DiskBudget, default_cache_dir, fingerprint, user_path
from resnet_ft.reading import StrictTarInfo, in_words, read_json, reading
from resnet_ft.remote import fetch, is_address, masked

INDEX = "dataset.json"
_NAME = re.compile(r"\w[\w-]*\.tar", re.ASCII)  # no other folder, and no command in a "pipe:"
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
_ENTRY = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i4")])
_MOST_SAMPLES = 10**8  # in a split
_LONGEST_LABEL = 20  # bytes
_MIXED = 4  # shards whose samples are mixed: each sample comes up to this many shards later
_AHEAD = 2  # shards that are fetched before they are needed
_IN_USE = 8  # shards that a process may need at about the same time


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
    folder = user_path(location)
    is_described = os.path.isfile(folder / INDEX) and any(folder.glob("*.tar"))
    # Beside images in folders, a file of this name describes something else.
    return is_described and not any(any(find_images(path)) for path in subfolders(folder))


def _place_of(location: str | Path, name: str) -> str:
    """The path or address of a file: `name` instead of "{}" in `location`, or below it."""
    location = str(location if is_address(location) else user_path(location))
    return location.replace("{}", name) if "{}" in location else f"{location.rstrip('/')}/{name}"


def read_shard_index(location: str | Path) -> ShardIndex:
    """Read `dataset.json`. Raises DatasetError if it is missing or does not describe shards."""
    place = _place_of(location, INDEX)
    remedy = "Pack the data set again, or check the address."
    with tempfile.TemporaryDirectory() as folder, reading(masked(place), DatasetError, remedy):
        file = Path(place)
        if is_address(location):
            file = Path(folder, INDEX)
            fetch(place, file)
        described, text = read_json(file), file.read_bytes()
    try:
        found = {
            str(split): [Shard(str(s["name"]), int(s["samples"]), int(s["bytes"])) for s in shards]
            for split, shards in described["splits"].items()
        }
        shards = [shard for shards in found.values() for shard in shards]
        names = [shard.name for shard in shards]
        strange = [name for name in names if not _NAME.fullmatch(name)]
        if strange or len(set(names)) < len(names):
            raise ValueError(f"the shards should be called train-000000.tar, ..., not {strange}")
        numbers = [number for shard in shards for number in (shard.samples, shard.bytes)]
        if not all(0 <= number < 2**63 for number in numbers):
            raise ValueError("numbers of samples or bytes that no shard has")
        totals = [sum(shard.samples for shard in shards) for shards in found.values()]
        if not totals or not all(0 < total <= _MOST_SAMPLES for total in totals):
            raise ValueError(f"a split without samples, or with more than {_MOST_SAMPLES:,}")
        splits = {split: found[split] for split in SPLITS if split in found}
        classes = [str(name) for name in described["classes"]]
        if not isinstance(described["classes"], list) or len(set(classes)) < len(classes):
            raise ValueError("classes that are no list of names, or a name twice")
        return ShardIndex(classes, str(described.get("fingerprint") or fingerprint([text])), splits)
    except Exception as error:  # of whatever a file holds that nobody here wrote
        raise DatasetError(
            f"{masked(place)} does not describe shards as pack_dataset does: "
            f"{type(error).__name__}: {in_words(error)}. {remedy}"
        ) from error


def list_samples(file: IO[bytes], place: str) -> tuple[list[str], np.ndarray]:
    """Keys of the samples of a shard, and a record of each: offset and size of its image, label.

    Raises DatasetError, which calls the shard `place`, for a broken archive or sample.
    """
    found: dict[str, dict[str, Any]] = {}
    try:
        total = file.seek(0, os.SEEK_END)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:", tarinfo=StrictTarInfo) as tar:
            for member in tar:
                named = _MEMBER.fullmatch(member.name)
                if not (named and member.isfile()):
                    continue
                key, extension = named[1], "." + named[2].lower()
                sample = found.setdefault(key, {})
                if member.offset_data + member.size > total:
                    raise ValueError(f"it ends within {member.name[:80]}")
                if extension in IMAGE_EXTENSIONS:
                    if "image" in sample:
                        raise DatasetError(
                            f"{place}: sample {key} has two images. Keep the one to learn from, or "
                            f"call the other {key}.mask{extension}; then pack again."
                        )
                    sample["image"] = member.offset_data, member.size
                elif extension == ".cls":
                    file.seek(member.offset_data)
                    sample["label"] = int(file.read(min(member.size, _LONGEST_LABEL)))
                    if not 0 <= sample["label"] < 2**31:
                        raise ValueError(f"label {sample['label']} of {member.name[:80]}")
    except Exception as error:  # tarfile raises anything for damaged headers
        if isinstance(error, OSError) and error.errno:  # of the disk
            raise
        raise DatasetError(
            f"{place} is broken: {in_words(error)}. Copy it again, or pack the data set again."
        ) from error
    for key, sample in found.items():
        if len(sample) < 2:
            lacking = "label (.cls)" if "image" in sample else "image (.jpg, .png, ...)"
            raise DatasetError(f"{place}: sample {key} has no {lacking}. Pack the data set again.")
    records = [(*sample["image"], sample["label"]) for sample in found.values()]
    return list(found), np.array(records, _ENTRY)


class ShardFiles:
    """Reads samples out of the shards at a path or address; keeps remote shards in a cache.

    Raises DatasetError for a shard that is missing or broken.
    """

    def __init__(
        self, location: str | Path, cache_dir: str | Path | None, cache_size_gb: float | None
    ):
        self.index = read_shard_index(location)
        self._location = location
        self._is_remote = is_address(location)
        self._folder = user_path(location)
        if self._is_remote:
            caches = user_path(cache_dir or default_cache_dir()) / "shards"
            self._folder = caches / fingerprint([location, self.index])
        self._size_gb = cache_size_gb
        self._records: dict[str, np.ndarray] = {}
        self._fetching: Thread | None = None

    def read(self, shard: Shard, number: int, upcoming: Sequence[Shard] = ()) -> tuple[bytes, int]:
        """The image file and the label of a sample; a worker fetches `upcoming` shards too."""
        try:
            self._fetch_ahead(upcoming)
            with self._open(shard) as file:
                if shard.name not in self._records:
                    self._records[shard.name] = self._list(shard, file)
                offset, size, label = self._records[shard.name][number].tolist()
                file.seek(offset)
                return file.read(size), label
        except OSError as error:
            raise DatasetError(
                f"{self._place(shard)} could not be read in {self._folder}: "
                f"{error.strerror or error}. Check that the folder has all shards of dataset.json "
                "and that you may read and write there."
            ) from error

    def name(self, shard: Shard, number: int) -> str:
        """What identifies a sample for a person: the place of its shard, and its key."""
        with self._open(shard) as file:
            keys, _ = list_samples(file, self._place(shard))
        return f"{self._place(shard)}, sample {keys[number]}"

    def _place(self, shard: Shard) -> str:
        return masked(_place_of(self._location, shard.name))

    def _list(self, shard: Shard, file: IO[bytes]) -> np.ndarray:
        place, size = self._place(shard), os.fstat(file.fileno()).st_size
        remedy = "Copy it again, or pack the data set again."
        if size != shard.bytes:
            raise DatasetError(
                f"{place} has {size:,} bytes, not {shard.bytes:,} as dataset.json says: the copy "
                f"is incomplete, or the file changed. {remedy}"
            )
        _, records = list_samples(file, place)
        unknown = np.count_nonzero(~np.isin(records["label"], np.arange(len(self.index.classes))))
        if len(records) != shard.samples or unknown:
            raise DatasetError(
                f"{place} has {len(records)} samples of {shard.samples} that dataset.json says, "
                f"{unknown} of them of an unknown class. {remedy}"
            )
        return records

    def _open(self, shard: Shard) -> IO[bytes]:
        path = self._folder / shard.name
        if self._is_remote:
            with suppress(FileNotFoundError):
                os.utime(path)
                return path.open("rb")
            self._fetch(shard)
        return path.open("rb")

    def _fetch_ahead(self, upcoming: Sequence[Shard]) -> None:
        if not self._is_remote or get_worker_info() is None:
            return  # a process that starts others by forking should have no threads
        if self._fetching and self._fetching.is_alive():
            return
        missing = [shard for shard in upcoming if not (self._folder / shard.name).exists()]

        def fetch_all() -> None:
            for shard in missing:
                with suppress(DatasetError, OSError, Timeout):  # reported when it is needed
                    self._fetch(shard, timeout=0)

        if missing:
            self._fetching = Thread(target=fetch_all, daemon=True)
            self._fetching.start()

    def _fetch(self, shard: Shard, timeout: float = -1) -> None:
        path = self._folder / shard.name
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=timeout):
            if not path.exists():
                # Shards of other data sets are deleted too; those that may be in use stay.
                budget = DiskBudget(self._folder.parent, "*/*.tar", self._size_gb)
                in_use = list(budget.sizes)[1 - _IN_USE * distributed.count() :]
                budget.make_room(shard.bytes, in_use=in_use)
                partial = path.with_suffix(".part")
                fetch(_place_of(self._location, shard.name), partial, shard.bytes)
                os.replace(partial, path)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_fetching": None}  # a thread cannot be sent to another process


class ShardBatchSampler(EpochBatchSampler):
    """Batches of samples that are counted through the shards; `counts` says how many each has.

    The shards, with `shuffle` in an order of (seed, epoch), are cut into an equal part per process.
    With `shuffle`, the samples of a part come as from a shuffle buffer: each is delayed by up to
    four shards. Where `batch_size` is a multiple of the number of processes, each reads only the
    shards of its part.
    """

    def __init__(
        self, counts: Sequence[int], batch_size: int, *, shuffle: bool = False, seed: int = 0
    ) -> None:
        super().__init__(sum(counts), batch_size, shuffle=shuffle, seed=seed)
        self._counts = torch.tensor(counts, dtype=torch.long)

    def shards(self, epoch: int) -> list[int]:
        """The shards of the part of this process, in order."""
        shards, sizes, rank = self._shards(epoch), self._parts(), distributed.rank()
        start, end = sum(sizes[:rank]), sum(sizes[: rank + 1])
        ends = self._counts[shards].cumsum(0)
        return shards[(ends > start) & (ends - self._counts[shards] < end)].tolist()

    def _samples(self, epoch: int, generator: torch.Generator) -> Tensor:
        """Epoch and index (N, 2) of all samples; those of process r of n are at r, r + n, ..."""
        of_shard = torch.arange(self.num_samples).split(self._counts.tolist())
        in_order = torch.cat([of_shard[i] for i in self._shards(epoch).tolist()])
        samples = torch.empty_like(in_order)
        for rank, part in enumerate(in_order.split(self._parts())):
            places = torch.arange(len(part), dtype=torch.float64)
            if self.shuffle:
                generator.manual_seed(seed_of(self.seed, epoch, rank))
                delays = torch.rand(len(part), generator=generator, dtype=torch.float64)
                places += _MIXED * self.num_samples / len(self._counts) * delays
            samples[rank :: distributed.count()] = part[places.argsort()]
        return torch.stack([torch.full_like(samples, epoch), samples], dim=1)

    def _shards(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self._counts))
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        return torch.randperm(len(self._counts), generator=generator)

    def _parts(self) -> list[int]:
        """How many samples each process has."""
        count = distributed.count()
        return [len(range(rank, self.num_samples, count)) for rank in range(count)]


class ShardDataset(SeededDataset):
    """The samples of one split, counted through its shards, each decoded when it is asked for.

    They are no files, and their labels are in the shards: there are no `samples` and `targets`.
    Images have the short side that `preprocessing` wants (see `open_resized`).
    """

    def __init__(
        self,
        files: ShardFiles,
        split: str,
        transform: Callable,
        batches: ShardBatchSampler,
        preprocessing: Preprocessing,
    ):
        super().__init__(files.index.classes, transform, seed=batches.seed)
        self.fingerprint = files.index.fingerprint
        self._files, self._shards = files, files.index.splits[split]
        self._batches, self._resizing = batches, (preprocessing.side, preprocessing.interpolation)
        self._starts = np.cumsum([0] + [shard.samples for shard in self._shards])
        self._upcoming: tuple[int, dict[int, list[Shard]]] = (-1, {})  # of an epoch, by shard

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        """See `SeededDataset`. Raises DatasetError for a broken shard, ImageError for an image."""
        if self._upcoming[0] != epoch:
            order = self._batches.shards(epoch)
            shards = [self._shards[i] for i in order]
            upcoming = {i: shards[n : n + _AHEAD] for n, i in enumerate(order, start=1)}
            self._upcoming = epoch, upcoming
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        shard, place = self._shards[number], index - int(self._starts[number])
        content, label = self._files.read(shard, place, self._upcoming[1].get(number, []))
        try:
            return np.array(open_resized(BytesIO(content), *self._resizing)), label
        except ImageError as error:
            raise ImageError(
                f"{self._files.name(shard, place)}: {error.reason}. Replace or remove the file "
                "that it was made of, and pack the data set again.",
                error.reason,
            ) from error
