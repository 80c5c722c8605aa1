"""How batches of images come from workers: through shared memory that is there once, as bytes.

A DataLoader makes new shared memory for every batch, of floats, and the system has to clear each
page of it. Here a batch has a slot, which is free again as soon as its bytes have become floats.
"""

import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from resnet_ft import engine
from resnet_ft.data.dataset import EpochBatchSampler, ImageDataset, SampleKey

PREFETCH = 2  # batches that a worker has ready
_SHARED_MEMORY = Path("/dev/shm")
_KEPT = 3
_FREE = 3  # references to an array: of the list, of the loop, and of the question
Unfinished = tuple[Tensor, int, int]  # bytes (H, W, 3), label, slot


class ImageLoader(DataLoader):
    """A DataLoader of unfinished samples, whose batches `dataset.finish` finishes in this process.

    `batch_sampler.slots` says how many slots its keys go through in turn.
    """

    def __init__(
        self, dataset: ImageDataset, *, batch_sampler: EpochBatchSampler, **options: object
    ):
        slots = None
        if options.get("num_workers"):
            image, *_ = dataset[SampleKey(0, 0, slot=0)]
            most = batch_sampler.batch_size + 1  # a last single image joins the batch before it
            slots = torch.empty(batch_sampler.slots, most, *image.shape, dtype=image.dtype)
            slots.share_memory_()
        super().__init__(
            dataset, batch_sampler=batch_sampler, collate_fn=_Handing(slots), **options
        )
        self._slots = slots
        self._memory = _Memory()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, slot in super().__iter__():
            handed = self._slots[slot, :images] if isinstance(images, int) else images
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # more would only take the cores from the workers
            finished = self.dataset.finish(handed, self._memory.empty)
            torch.set_num_threads(threads)
            yield finished, labels
            del finished  # or else its memory could not be taken for the next batch


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

    def __init__(self, slots: Tensor | None):
        self._slots = slots

    def __call__(self, samples: list[Unfinished]) -> tuple[Tensor | int, Tensor, int]:
        images, labels, slots = zip(*samples, strict=True)
        labels, slot = torch.tensor(labels), slots[0]
        if self._slots is None or any(image.shape != self._slots.shape[2:] for image in images):
            return default_collate(list(images)), labels, slot
        torch.stack(images, out=self._slots[slot, : len(images)])
        return len(images), labels, slot


def fitting_workers(wanted: int | None, *, batch_bytes: int) -> int:
    """How many workers, so that their batches fit into shared memory: Docker often gives 64 MB."""
    workers = engine.cpu_cores() if wanted is None else wanted
    if workers and _SHARED_MEMORY.is_dir():
        # Training and validation workers live side by side and keep a batch in the making as well.
        fitting = shutil.disk_usage(_SHARED_MEMORY).free // (2 * (PREFETCH + 1) * batch_bytes)
        if wanted and fitting < wanted:
            warnings.warn(
                f"num_workers={wanted} does not fit into {_SHARED_MEMORY}: using {fitting}. Give "
                "the machine more shared memory (docker run --shm-size=2g), or take less a batch.",
                stacklevel=3,
            )
        workers = min(workers, fitting)
    return workers
