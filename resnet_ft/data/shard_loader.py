"""From tar shards, which may lie elsewhere and be larger than the disk, to data loaders."""

from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resnet_ft import distributed
from resnet_ft.data.batches import EpochBatchSampler, ImageLoader, image_loader, slots_for
from resnet_ft.data.dataset import SeededDataset, seed_of
from resnet_ft.data.images import open_resized
from resnet_ft.data.shards import Shard, ShardFiles, ShardIndex, read_shard_index
from resnet_ft.data.transforms import describe_preprocessing
from resnet_ft.errors import ImageError

_MIXED = 4  # shards whose samples are mixed: each sample comes up to so many shards later


class ShardOrder:
    """Which samples come when in an epoch; `counts` says how many each shard has.

    The shards are laid one after the other, with `shuffle` in an order of (seed, epoch), and cut
    into an equal part for each process. With `shuffle`, the samples of a part come as from a
    shuffle buffer: each is put off by a random number of places, up to those of four shards.
    """

    def __init__(self, counts: Sequence[int], *, shuffle: bool = False, seed: int = 0):
        self.counts = torch.tensor(counts, dtype=torch.long)
        self.total = int(self.counts.sum())
        self.shuffle, self.seed = shuffle, seed

    def shards(self, epoch: int) -> list[int]:
        """The shards that the part of this process lies in."""
        shards, (start, end) = self._shards(epoch), self._parts()[distributed.rank()]
        ends = self.counts[shards].cumsum(0)
        return shards[(ends > start) & (ends - self.counts[shards] < end)].tolist()

    def samples(self, epoch: int) -> Tensor:
        """All samples (N,), counted through the shards as `counts` names them.

        Those of process r of n stand at r, r + n, ...: it gets these of a batch of them all.
        """
        ends = self.counts.cumsum(0)
        pieces = [torch.arange(ends[i] - self.counts[i], ends[i]) for i in self._shards(epoch)]
        laid, samples = torch.cat(pieces), torch.empty(self.total, dtype=torch.long)
        for rank, (start, end) in enumerate(self._parts()):
            part = laid[start:end]
            samples[rank :: distributed.count()] = self._mixed(part, epoch, rank)
        return samples

    def _shards(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.counts))
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        return torch.randperm(len(self.counts), generator=generator)

    def _parts(self) -> list[tuple[int, int]]:
        """Where the part of each process begins and ends."""
        count = distributed.count()
        sizes = [len(range(rank, self.total, count)) for rank in range(count)]
        return list(pairwise(accumulate(sizes, initial=0)))

    def _mixed(self, part: Tensor, epoch: int, rank: int) -> Tensor:
        if not self.shuffle:
            return part
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, rank))
        put_off = torch.rand(len(part), generator=generator, dtype=torch.float64)
        places = torch.arange(len(part)) + _MIXED * self.total / len(self.counts) * put_off
        return part[places.argsort()]


class ShardBatchSampler(EpochBatchSampler):
    """Batches of the samples of shards, in their order.

    Where `batch_size` is a multiple of the number of processes, each reads shards of its own only.
    """

    def __init__(self, order: ShardOrder, batch_size: int, *, slots: int = 1):
        super().__init__(
            order.total,
            batch_size,
            shuffle=order.shuffle,
            join_last=order.shuffle,
            slots=slots,
            seed=order.seed,
        )
        self._order = order

    def _samples(self, epoch: int, generator: torch.Generator) -> Tensor:
        samples = self._order.samples(epoch)
        return torch.stack([torch.full_like(samples, epoch), samples], dim=1)


_AHEAD = 2  # shards that are fetched before they are needed


class _ShardDataset(SeededDataset):
    """The samples of one split in shards, decoded whenever they are asked for.

    They are counted through all shards of the split. Their labels are in the shards, and they are
    no files: there are no `samples` and `targets`.
    """

    def __init__(
        self,
        files: ShardFiles,
        index: ShardIndex,
        split: str,
        transform: Callable,
        *,
        order: ShardOrder,
        side: int,
        preprocessing: dict | None = None,
    ):
        super().__init__(
            index.classes,
            transform,
            seed=order.seed,
            preprocessing=preprocessing,
            fingerprint=index.fingerprint,
        )
        self._files, self._shards = files, index.splits[split]
        self._order, self._side = order, side
        self._starts = np.cumsum([0] + [shard.samples for shard in self._shards])
        self._following: tuple[int, dict[int, list[Shard]]] = (-1, {})  # of an epoch

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
                f"{self._files.name(shard, place)}: {error.reason}. Replace the file that it was "
                "made of, or take it out, and pack the data set anew.",
                error.reason,
            ) from error

    def _upcoming(self, epoch: int, number: int) -> list[Shard]:
        """The shards that come next in an epoch."""
        if self._following[0] != epoch:
            order = self._order.shards(epoch)
            shards = [self._shards[i] for i in order]
            next_ones = (shards[i : i + _AHEAD] for i in range(1, len(order) + 1))
            self._following = epoch, dict(zip(order, next_ones, strict=True))
        return self._following[1].get(number, [])


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
) -> dict[str, ImageLoader]:
    """A loader for each split of the shards at a path or address: see `make_dataloaders`.

    `side` is the short side that photographs are decoded to.
    """
    index = read_shard_index(location)
    files = ShardFiles(location, index, cache_dir=cache_dir, cache_size_gb=cache_size_gb)
    described, loaders = describe_preprocessing(transforms["val"]), {}
    for split, shards in index.splits.items():
        counts = [shard.samples for shard in shards]
        order = ShardOrder(counts, shuffle=split == "train", seed=seed)
        dataset = _ShardDataset(
            *(files, index, split, transforms[split]),
            order=order,
            side=side,
            preprocessing=described,
        )
        batches = ShardBatchSampler(order, batch_size, slots=slots_for(num_workers))
        loaders[split] = image_loader(dataset, batches, num_workers)
    return loaders
