"""Batches of samples: which come when, in this process and in others."""

import gc
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from resnet_ft import distributed, engine
from resnet_ft.data.dataset import ImageDataset, SampleKey, SeededDataset, seed_of


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
        return slice(batch * self.batch_size + distributed.rank(), end, distributed.count())

    def _samples(self, epoch: int, generator: torch.Generator) -> Tensor:
        """Epoch and index (N, 2) of the samples of a pass, in its order."""
        count = self.num_samples
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        return torch.stack([torch.full_like(order, epoch), order], dim=1)

    def __len__(self) -> int:
        batches, rest = divmod(self.num_samples, self.batch_size)
        joins = self.join_last and rest < max(2, distributed.count()) and batches > 0
        return batches + (rest > 0 and not joins)


_PREFETCH = 2  # batches that a worker has ready
_SHARED_MEMORY = Path("/dev/shm")
_KEPT = 3
Unfinished = tuple[Tensor, int, int]  # bytes (H, W, 3), label, slot


class ImageLoader(DataLoader):
    """A DataLoader of unfinished samples, whose batches `dataset.finish` finishes in this process.

    `batch_sampler.slots` says how many slots its keys go through in turn. Who rebuilds a loader
    from its parts, as accelerate's `prepare` does, gets batches that are not finished.
    """

    def __init__(
        self, dataset: SeededDataset, *, batch_sampler: EpochBatchSampler, **options: object
    ):
        super().__init__(dataset, batch_sampler=batch_sampler, collate_fn=_Handing(), **options)
        self._memory = _Memory()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        handing = self.collate_fn
        if self.num_workers and handing.slots is None and self._iterator is None:
            image, *_ = self.dataset[SampleKey(0, 0, slot=0)]
            handing.make_slots(image, self.batch_sampler)
        for images, labels, slot in super().__iter__():
            handed = handing.slots[slot, :images] if isinstance(images, int) else images
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # more would only take the cores from the workers
            try:
                finished = self.dataset.finish(handed, self._memory.empty)
            finally:
                torch.set_num_threads(threads)
            yield finished.clone() if finished is handed is not images else finished, labels
            del finished  # or else its memory could not be taken for the next batch


def image_loader(
    dataset: SeededDataset, batches: EpochBatchSampler, num_workers: int
) -> ImageLoader:
    """A loader of these batches; their sampler goes through `slots_for(num_workers)` slots."""
    return ImageLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=_PREFETCH if num_workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_keep_shared,
        generator=torch.Generator().manual_seed(dataset.seed),
    )


def _keep_shared(_worker: int) -> None:
    """Leave what was there before the fork alone.

    A full garbage collection, after some thousand batches, would write into every object that the
    imports made, and so copy 90 MB of them into each worker.
    """
    gc.freeze()


def reads_files(loader: object) -> bool:
    """Whether a loader is one of `make_dataloaders` whose every image is a file of its own."""
    return isinstance(loader, ImageLoader) and isinstance(loader.dataset, ImageDataset)


def slots_for(num_workers: int) -> int:
    """So many batches are on their way from workers, and one is just being taken."""
    return _PREFETCH * num_workers + 1


def _references_to_a_free_array() -> int:
    """What `sys.getrefcount` says of an array in a list, which depends on the Python version."""
    for array in [np.empty(1)]:
        return sys.getrefcount(array)


_FREE = _references_to_a_free_array()


class _Memory:
    """Memory for batches of floats, taken again as soon as nobody holds a batch of it any more."""

    def __init__(self):
        self._arrays: list[np.ndarray] = []

    def empty(self, *shape: int) -> Tensor:
        """Like `torch.empty`."""
        for array in self._arrays:
            # A tensor, and every view of it, holds its array: then there is one reference more.
            if array.shape == shape and sys.getrefcount(array) == _FREE:
                return torch.from_numpy(array)
        array = np.empty(shape, np.float32)
        self._arrays = [*self._arrays[1 - _KEPT :], array]
        return torch.from_numpy(array)


class _Handing:
    """Puts the images of a batch into its slot; without slots, or where they do not fit, stacks."""

    def __init__(self):
        self.slots: Tensor | None = None

    def make_slots(self, image: object, batches: EpochBatchSampler) -> None:
        """Memory for batches of such images, if they are tensors and there is as much."""
        if isinstance(image, Tensor):
            most = batches.batch_size + 1  # a last single image joins the batch before it
            with suppress(RuntimeError):  # little shared memory, as in many containers
                slots = torch.empty(batches.slots, most, *image.shape, dtype=image.dtype)
                self.slots = slots.share_memory_()

    def __call__(self, samples: list[Unfinished]) -> tuple[object, Tensor, int]:
        images, labels, slots = zip(*samples, strict=True)
        labels, slot = torch.tensor(labels), slots[0]
        if self.slots is None or not all(self._fits(image) for image in images):
            return default_collate(list(images)), labels, slot
        torch.stack(images, out=self.slots[slot, : len(images)])
        return len(images), labels, slot

    def _fits(self, image: object) -> bool:
        slots = self.slots
        return isinstance(image, Tensor) and (image.shape, image.dtype) == (
            slots.shape[2:],
            slots.dtype,
        )


def fitting_workers(wanted: int | None, *, batch_bytes: int) -> int:
    """How many workers, so that their batches fit into shared memory: Docker often gives 64 MB."""
    workers = engine.cpu_cores() if wanted is None else wanted
    if workers and _SHARED_MEMORY.is_dir():
        # Training and validation workers live side by side and keep a batch in the making as well.
        fitting = shutil.disk_usage(_SHARED_MEMORY).free // (2 * (_PREFETCH + 1) * batch_bytes)
        if wanted and fitting < wanted:
            warnings.warn(
                f"num_workers={wanted} does not fit into {_SHARED_MEMORY}: using {fitting}. Give "
                "the machine more shared memory (docker run --shm-size=2g), or take less a batch.",
                stacklevel=3,
            )
        workers = min(workers, fitting)
    return workers
