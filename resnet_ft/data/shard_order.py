"""The order in which an epoch goes through shards, and the part of it that each process takes."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from resnet_ft import processes
from resnet_ft.data.dataset import seed_of
from resnet_ft.data.sampling import EpochBatchSampler

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
        shards, (start, end) = self._shards(epoch), self._parts()[processes.rank()]
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
            samples[rank :: processes.count()] = self._mixed(part, epoch, rank)
        return samples

    def _shards(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.counts))
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        return torch.randperm(len(self.counts), generator=generator)

    def _parts(self) -> list[tuple[int, int]]:
        """Where the part of each process begins and ends."""
        count = processes.count()
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
