"""Tar shards, which may be remote and larger than the disk: described, fetched, read and loaded.

The shards have the layout of the webdataset library: members whose names are alike up to the first
dot are a sample, `<key>.jpg` (or another image) and `<key>.cls`, its label as text. `dataset.json`
beside them says what they hold.
"""

import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate, pairwise
from pathlib import Path
from threading import Thread
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from resnet_ft import distributed
from resnet_ft.data.batches import EpochBatchSampler, ImageLoader
from resnet_ft.data.dataset import SeededDataset, seed_of
from resnet_ft.data.images import IMAGE_EXTENSIONS, open_resized
from resnet_ft.data.index import SPLITS
from resnet_ft.data.transforms import Preprocessing, describe_preprocessing
from resnet_ft.errors import DatasetError, ImageError
from resnet_ft.files import DiskBudget, default_cache_dir, fingerprint
from resnet_ft.remote import fetch, is_address

INDEX = "dataset.json"
_NAME = re.compile(r"\w[\w-]*\.tar", re.ASCII)  # no other folder, and no command in a "pipe:"
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
_ENTRY = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i4")])
_MIXED = 4  # shards whose samples are mixed: each sample comes up to this many shards later
_AHEAD = 2  # shards that are fetched before they are needed
_IN_USE = 8  # shards that a process may therefore need at about the same time


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


def _place_of(location: str | Path, name: str) -> str:
    """The path or address of a file: `name` instead of "{}" in `location`, or below it."""
    location = str(location)
    return location.replace("{}", name) if "{}" in location else f"{location.rstrip('/')}/{name}"


def read_shard_index(location: str | Path) -> ShardIndex:
    """Read `dataset.json`. Raises DatasetError if it is missing or does not describe shards."""
    place = _place_of(location, INDEX)
    if is_address(location):
        with tempfile.TemporaryDirectory() as folder:
            fetch(place, Path(folder, INDEX))
            text = Path(folder, INDEX).read_bytes()
    else:
        text = Path(place).read_bytes()
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
            f"{error}. Pack the data set again, or check the address."
        ) from error


def list_samples(file: IO[bytes], place: str) -> tuple[list[str], np.ndarray]:
    """Keys of the samples of a shard, and a record of each: offset and size of its image, label.

    `place` is what an error calls the shard. Raises DatasetError for a file that is no tar archive,
    and for a sample without an image or a label.
    """
    found: dict[str, dict[str, Any]] = {}
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
            f"{place} is broken: {error}. Copy it again, or pack the data set again."
        ) from error
    for key, sample in found.items():
        if len(sample) < 2:
            lacking = "label (.cls)" if "image" in sample else "image (.jpg, .png, ...)"
            raise DatasetError(f"{place}: sample {key} has no {lacking}. Pack the data set again.")
    records = [(*sample["image"], sample["label"]) for sample in found.values()]
    return list(found), np.array(records, _ENTRY)


class ShardFiles:
    """Reads samples out of shards; keeps remote shards in a cache.

    Raises DatasetError for a shard that is missing or broken.
    """

    def __init__(
        self,
        location: str | Path,
        index: ShardIndex,
        *,
        cache_dir: str | Path | None = None,
        cache_size_gb: float | None = None,
    ) -> None:
        self._location = location
        self._num_classes = len(index.classes)
        self._is_remote = is_address(location)
        self._folder = Path(location)
        if self._is_remote:
            caches = Path(cache_dir or default_cache_dir()) / "shards"
            self._folder = caches / fingerprint([location, index])
        self._size_gb = cache_size_gb
        self._records: dict[str, np.ndarray] = {}
        self._fetching: Thread | None = None

    def read(self, shard: Shard, number: int, upcoming: Sequence[Shard] = ()) -> tuple[bytes, int]:
        """The image file and the label of a sample; a worker fetches `upcoming` shards too."""
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
                f"{error.strerror or error}. Check that the folder has all shards of dataset.json "
                "and that you may read and write there."
            ) from error

    def name(self, shard: Shard, number: int) -> str:
        """What identifies a sample for a person: the place of its shard, and its key."""
        with self._open(shard) as file:
            keys, _ = list_samples(file, self._place(shard))
        return f"{self._place(shard)}, sample {keys[number]}"

    def _place(self, shard: Shard) -> str:
        return _place_of(self._location, shard.name)

    def _list(self, shard: Shard, file: IO[bytes]) -> np.ndarray:
        place, size = self._place(shard), os.fstat(file.fileno()).st_size
        if size != shard.bytes:
            raise DatasetError(
                f"{place} has {size:,} bytes, not {shard.bytes:,} as dataset.json says: the copy "
                "is incomplete, or the file changed. Copy it again, or pack the data set again."
            )
        _, records = list_samples(file, place)
        known = np.isin(records["label"], np.arange(self._num_classes))
        if len(records) != shard.samples or not known.all():
            raise DatasetError(
                f"{place} has {len(records)} samples of {shard.samples} that dataset.json says, "
                f"{np.count_nonzero(~known)} of them of an unknown class: it is broken, or of "
                "another data set. Copy it again, or pack the data set again."
            )
        return records

    def _open(self, shard: Shard, upcoming: Sequence[Shard] = ()) -> IO[bytes]:
        path = self._folder / shard.name
        if self._is_remote:
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
            with suppress(DatasetError, OSError, Timeout):  # reported when the shard is needed
                self._fetch(shard, timeout=0)

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
                fetch(self._place(shard), partial, shard.bytes)
                os.replace(partial, path)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_fetching": None}  # a thread cannot be sent to another process


class ShardBatchSampler(EpochBatchSampler):
    """Batches of samples that are counted through the shards; `counts` says how many each has.

    The shards come one after the other, with `shuffle` in an order of (seed, epoch), and are cut
    into an equal part for each process. With `shuffle`, the samples of a part come as from a
    shuffle buffer: each is delayed by a random number of places, up to those of four shards. Where
    `batch_size` is a multiple of the number of processes, each reads only the shards of its part.
    """

    def __init__(
        self, counts: Sequence[int], batch_size: int, *, shuffle: bool = False, seed: int = 0
    ) -> None:
        super().__init__(sum(counts), batch_size, shuffle=shuffle, seed=seed)
        self._counts = torch.tensor(counts, dtype=torch.long)

    def shards(self, epoch: int) -> list[int]:
        """The shards that the part of this process lies in, in order."""
        shards, (start, end) = self._shards(epoch), self._parts()[distributed.rank()]
        ends = self._counts[shards].cumsum(0)
        return shards[(ends > start) & (ends - self._counts[shards] < end)].tolist()

    def _samples(self, epoch: int, generator: torch.Generator) -> Tensor:
        """Epoch and index (N, 2) of all samples; those of process r of n are at r, r + n, ..."""
        of_shard = torch.arange(self.num_samples).split(self._counts.tolist())
        in_order = torch.cat([of_shard[i] for i in self._shards(epoch).tolist()])
        samples = torch.empty_like(in_order)
        for rank, (start, end) in enumerate(self._parts()):
            mixed = self._mixed(in_order[start:end], epoch, rank)
            samples[rank :: distributed.count()] = mixed
        return torch.stack([torch.full_like(samples, epoch), samples], dim=1)

    def _shards(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self._counts))
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        return torch.randperm(len(self._counts), generator=generator)

    def _parts(self) -> list[tuple[int, int]]:
        """Where the part of each process begins and ends."""
        count = distributed.count()
        sizes = [len(range(rank, self.num_samples, count)) for rank in range(count)]
        return list(pairwise(accumulate(sizes, initial=0)))

    def _mixed(self, part: Tensor, epoch: int, rank: int) -> Tensor:
        if not self.shuffle:
            return part
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, rank))
        delays = torch.rand(len(part), generator=generator, dtype=torch.float64)
        places = torch.arange(len(part)) + _MIXED * self.num_samples / len(self._counts) * delays
        return part[places.argsort()]


class _ShardDataset(SeededDataset):
    """The samples of one split in shards, each decoded when it is asked for.

    They are counted through all shards of the split. Their labels are in the shards, and they are
    no files: there are no `samples` and `targets`.
    """

    def __init__(
        self,
        files: ShardFiles,
        index: ShardIndex,
        split: str,
        transform: Callable,
        batches: ShardBatchSampler,
        *,
        side: int,
        preprocessing: Preprocessing | None,
    ) -> None:
        super().__init__(
            index.classes,
            transform,
            seed=batches.seed,
            preprocessing=preprocessing,
            fingerprint=index.fingerprint,
        )
        self._files, self._shards = files, index.splits[split]
        self._batches, self._side = batches, side
        self._starts = np.cumsum([0] + [shard.samples for shard in self._shards])
        self._next: tuple[int, dict[int, list[Shard]]] = (-1, {})  # of an epoch

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        """Sample `index`, its short side at `side` pixels (see `open_resized`), and its label.

        Raises DatasetError for a shard that cannot be read, ImageError for such an image.
        """
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        shard, place = self._shards[number], index - int(self._starts[number])
        content, label = self._files.read(shard, place, self._upcoming(epoch, number))
        try:
            return np.array(open_resized(BytesIO(content), self._side)), label
        except ImageError as error:
            raise ImageError(
                f"{self._files.name(shard, place)}: {error.reason}. Replace or remove the file "
                "that it was made of, and pack the data set again.",
                error.reason,
            ) from error

    def _upcoming(self, epoch: int, number: int) -> list[Shard]:
        """The shards that come next in an epoch."""
        if self._next[0] != epoch:
            order = self._batches.shards(epoch)
            shards = [self._shards[i] for i in order]
            self._next = epoch, {i: shards[n : n + _AHEAD] for n, i in enumerate(order, start=1)}
        return self._next[1].get(number, [])


def shard_loaders(
    location: str | Path,
    transforms: dict[str, Callable],
    *,
    side: int,
    batch_size: int,
    num_workers: int,
    cache_dir: str | Path | None = None,
    cache_size_gb: float | None = None,
    seed: int = 0,
) -> dict[str, DataLoader]:
    """A loader for each split of the shards at a path or address: see `make_dataloaders`.

    `side` is the short side that images are decoded to.
    """
    index = read_shard_index(location)
    files = ShardFiles(location, index, cache_dir=cache_dir, cache_size_gb=cache_size_gb)
    preprocessing = describe_preprocessing(transforms["val"])
    loaders: dict[str, DataLoader] = {}
    for split, shards in index.splits.items():
        counts = [shard.samples for shard in shards]
        batches = ShardBatchSampler(counts, batch_size, shuffle=split == "train", seed=seed)
        dataset = _ShardDataset(
            files, index, split, transforms[split], batches, side=side, preprocessing=preprocessing
        )
        loaders[split] = ImageLoader(dataset, batches, num_workers)
    return loaders
