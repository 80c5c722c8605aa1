"""Batches of samples: which come when, in this process and in others."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from resnet_ft import processes
from resnet_ft.data.dataset import SampleKey, seed_of


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Batches of sample keys, shuffled anew each epoch by (seed, epoch), in `slots` in turn.

    The epoch moves on with each pass, or is what `set_epoch` says; `start_at` lets one begin amid
    it. Without `shuffle` every pass is epoch 0, in order. With `join_last`, a last batch of one
    joins the batch before it, since batch normalisation cannot learn from a single sample.

    Of several processes each gets its share of every batch, the samples r, r + count, ...; then
    `join_last` sees to it that there is one for each.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        join_last: bool = False,
        slots: int = 1,
        seed: int = 0,
    ):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.join_last = join_last
        self.slots = slots
        self.seed = seed
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one of this epoch."""
        self.epoch = epoch

    def start_at(self, batch: int) -> None:
        """Make the next pass, and only that, leave out so many batches."""
        self.first_batch = batch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, first_batch, self.first_batch = 0, self.first_batch, 0
        if self.shuffle:
            epoch, self.epoch = self.epoch, self.epoch + 1
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        samples = self._samples(epoch, generator)
        for batch in range(first_batch, len(self)):
            rows = samples[self._share(batch)].tolist()
            if rows:
                yield [SampleKey(*row, slot=batch % self.slots) for row in rows]

    def places(self) -> Tensor:
        """Where in a whole pass the samples of this process stand."""
        everything = torch.arange(self.num_samples)
        return torch.cat([everything[self._share(batch)] for batch in range(len(self))])

    def _share(self, batch: int) -> slice:
        is_last = batch == len(self) - 1
        end = self.num_samples if is_last else (batch + 1) * self.batch_size
        return slice(batch * self.batch_size + processes.rank(), end, processes.count())

    def _samples(self, epoch: int, generator: torch.Generator) -> Tensor:
        """Epoch and index (N, 2) of the samples of a pass, in its order."""
        count = self.num_samples
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        return torch.stack([torch.full_like(order, epoch), order], dim=1)

    def __len__(self) -> int:
        batches, rest = divmod(self.num_samples, self.batch_size)
        joins = self.join_last and rest < max(2, processes.count()) and batches > 0
        return batches + (rest > 0 and not joins)
