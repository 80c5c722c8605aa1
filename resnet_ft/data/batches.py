"""Batches of samples: which samples come when, and how workers and this process make them."""

import gc
import multiprocessing
import pickle
import shutil
import sys
import warnings
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from resnet_ft import distributed, engine
from resnet_ft.data.dataset import ImageDataset, SampleKey, SeededDataset, seed_of
from resnet_ft.errors import ParameterError


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Batches of sample keys: in order, as epoch 0 sees them, or with `shuffle` for training.

    With `shuffle`, the order of an epoch depends on (seed, epoch) alone. Each pass is the next
    epoch, or the one given to `set_epoch`; `start_at` starts one mid-epoch. A last batch of one
    joins the batch before it, since batch normalisation cannot learn from one sample. Each of
    several processes gets its share of every batch, the samples rank, rank + count, ...; with
    `shuffle`, the last batch has at least one sample per process.
    """

    def __init__(self, num_samples: int, batch_size: int, *, shuffle: bool = False, seed: int = 0):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.slots = 1  # how many slots of its memory the loader fills in turn
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one of this epoch."""
        self.epoch = epoch

    def start_at(self, batch: int) -> None:
        """Let the next pass, and only that one, skip this many batches."""
        self.first_batch = batch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, first_batch, self.first_batch = 0, self.first_batch, 0
        if self.shuffle:
            epoch, self.epoch = self.epoch, self.epoch + 1
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        samples = self._samples(epoch, generator)
        for batch in range(first_batch, len(self)):
            slot, share = batch % self.slots, samples[self._share(batch)].tolist()
            if share:
                yield [SampleKey(of_epoch, index, slot) for of_epoch, index in share]

    def places(self) -> Tensor:
        """The positions of this process's samples in a pass of all processes."""
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
        joins = self.shuffle and rest < max(2, distributed.count()) and batches > 0
        return batches + (rest > 0 and not joins)


_PREFETCH = 2  # batches that a worker prepares ahead
_SHARED_MEMORY = Path("/dev/shm")


class ImageLoader(DataLoader):
    """A DataLoader whose workers write images into shared memory; this process finishes the batch.

    Code that builds another loader from the parts of this one, as accelerate's `prepare` does, gets
    unfinished batches: `dataset.finish` takes a batch at a time.
    """

    dataset: SeededDataset
    batch_sampler: EpochBatchSampler
    collate_fn: "_Collate"

    def __init__(self, dataset: SeededDataset, batch_sampler: EpochBatchSampler, num_workers: int):
        # Those that the workers prepare, and the one that this process uses.
        batch_sampler.slots = _PREFETCH * num_workers + 1
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=_Collate(),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            prefetch_factor=_PREFETCH if num_workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_keep_shared,
            generator=torch.Generator().manual_seed(dataset.seed),
        )
        self._memory = _Memory()
        self._pinned: Tensor | None = None

    # DataLoader promises its private iterator class, though its users only iterate.
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        for images, draws, labels, is_slot in self._unfinished():
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # more would only take the cores from the workers
            try:
                finished = self.dataset.finish(images, draws, self._memory.empty)
            finally:
                torch.set_num_threads(threads)
            yield finished.clone() if is_slot and finished is images else finished, labels
            del finished  # else the next batch could not reuse its memory

    def _unfinished(self) -> Iterator[tuple[Any, Tensor, Tensor, bool]]:
        """Images as the workers left them, draws, labels, and whether the images are in a slot.

        A slot is overwritten as soon as the next batch is asked for.
        """
        collate = self.collate_fn
        if self.num_workers and collate.slots is None and self._iterator is None:
            image, *_ = self.dataset[SampleKey(0, 0, slot=0)]
            if isinstance(image, Tensor):
                # Batches of such images; a last single image joins the batch before it.
                shape = self.batch_sampler.slots, self.batch_sampler.batch_size + 1, *image.shape
                with suppress(RuntimeError):  # little shared memory, as in many containers
                    collate.slots = torch.empty(shape, dtype=image.dtype).share_memory_()
        try:
            batches = super().__iter__()
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise ParameterError(
                f"The transform cannot be sent to new worker processes ({error}). Define its "
                "functions and classes at the top of a module (no lambda), or give num_workers=0."
            ) from error
        for images, draws, labels, slot in batches:
            slots = collate.slots if isinstance(images, int) else None
            batch = images if slots is None else slots[slot, :images]
            yield batch, torch.from_numpy(draws), torch.from_numpy(labels), slots is not None

    def on_device(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches whose images are finished on the GPU, one batch ahead; their labels are here.

        Bytes are copied there, from memory that is pinned, on a stream of their own.
        """
        gpu, copied = torch.cuda.Stream(), torch.cuda.Event()
        previous: tuple[Tensor, Tensor, torch.cuda.Event] | None = None
        for images, draws, labels, _ in self._unfinished():
            self._pin_slots()
            with torch.cuda.stream(gpu):
                moved, drawn = (_to_gpu(one) for one in (images, draws))
                copied.record()
                finished = self.dataset.finish(moved, drawn, _empty_on_gpu)
                finished = finished.to(engine.compute_dtype())
                ready = torch.cuda.Event()
                ready.record()
            if previous is not None:
                yield _received(*previous)
            previous = finished, labels.pin_memory(), ready
            copied.synchronize()  # the next batch may overwrite this one's slot
        if previous is not None:
            yield _received(*previous)

    def _pin_slots(self) -> None:
        """Let the GPU read the memory of the slots directly, as far as the system allows."""
        slots = self.collate_fn.slots
        if slots is not None and self._pinned is not slots:
            self._pinned, cudart = slots, torch.cuda.cudart()
            if int(cudart.cudaHostRegister(slots.data_ptr(), slots.nbytes, 0)) == 0:
                release = weakref.finalize(self, cudart.cudaHostUnregister, slots.data_ptr())
                release.atexit = False  # when CUDA may be gone already


def unshuffled(loader: DataLoader) -> DataLoader:
    """The images of a loader of `make_dataloaders` in the order of its `dataset.samples`.

    Another loader comes back as it is.
    """
    if not reads_files(loader) or not loader.batch_sampler.shuffle:
        return loader
    whole = EpochBatchSampler(loader.batch_sampler.num_samples, loader.batch_sampler.batch_size)
    return ImageLoader(loader.dataset, whole, loader.num_workers)


def device_batches(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader with their images on the device; labels stay on the processor.

    On a GPU, images of our own loaders have the type that the network computes in, in
    channels_last memory, and labels are pinned, so that no copy waits for the GPU's work. Others
    are copied when it is their turn: what they draw at random may not be drawn earlier.
    """
    device = engine.device()
    on_device = getattr(loader, "on_device", None)
    if device.type == "cpu":
        yield from loader
        return
    if device.type == "cuda" and on_device is not None:
        yield from on_device()
        return
    for images, labels in loader:
        if device.type == "cuda":
            yield _to_gpu(images), labels.pin_memory()
        else:
            yield images.to(device), labels


def _to_gpu(tensor: Tensor) -> Tensor:
    pinned = tensor if tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(engine.device(), non_blocking=True)


def _empty_on_gpu(*shape: int) -> Tensor:
    return torch.empty(shape, device=engine.device(), memory_format=torch.channels_last)


def _received(images: Tensor, labels: Tensor, ready: "torch.cuda.Event") -> tuple[Tensor, Tensor]:
    """A batch from another stream, for the present one."""
    present = torch.cuda.current_stream()
    present.wait_event(ready)
    images.record_stream(present)  # else its memory could be used again too early
    return images, labels


def _keep_shared(_worker: int) -> None:
    """Keep garbage collections from writing to, and so copying, what a worker shares: 90 MB."""
    gc.freeze()


class _Collate:
    """Writes the images of a batch into its slot; stacks them where there is none or they differ.

    A collated batch is (images, draws, labels, slot); in a slot, `images` is their number.
    """

    slots: Tensor | None = None  # (slots, batch_size + 1, *image)

    def __call__(
        self, samples: list[tuple[Any, list[float], int, int]]
    ) -> tuple[object, np.ndarray, np.ndarray, int]:
        images, draws, labels, (slot, *_) = zip(*samples, strict=True)
        rest = np.array(draws, np.float32), np.array(labels, np.int64), slot
        slots = self.slots
        kinds = {isinstance(image, Tensor) and (image.shape, image.dtype) for image in images}
        if slots is None or kinds != {(slots.shape[2:], slots.dtype)}:
            return default_collate(list(images)), *rest
        torch.stack(images, out=slots[slot, : len(images)])
        return len(images), *rest


def _references(arrays: list[np.ndarray]) -> list[int]:
    return [sys.getrefcount(array) for array in arrays]


(_UNUSED,) = _references([np.empty(1)])  # depends on the version of Python


class _Memory:
    """Memory for batches of floats, used again as soon as nobody holds a batch in it any more."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []  # at most three

    def empty(self, *shape: int) -> Tensor:
        # A tensor, and every view of it, holds a reference to its array.
        for array, references in zip(self._arrays, _references(self._arrays), strict=True):
            if array.shape == shape and references == _UNUSED:
                return torch.from_numpy(array)
        array = np.empty(shape, np.float32)
        self._arrays = [*self._arrays[-2:], array]
        return torch.from_numpy(array)


def reads_files(loader: object) -> TypeGuard[ImageLoader]:
    """Whether a loader of `make_dataloaders` reads each image from its own file."""
    return isinstance(loader, ImageLoader) and isinstance(loader.dataset, ImageDataset)


_UNGUARDED = """A worker process imports this script and would start workers itself.
Move what the script does into a function main, and call it at the end in these two lines:

if __name__ == "__main__":
    main()

(Or make the loaders with num_workers=0.)"""


def worker_processes(wanted: int | None) -> int:
    """How many worker processes: by default one per core, none where no process may be started.

    Raises ParameterError, with the remedy, in a worker that is still importing the script of its
    parent (on Windows and macOS, and on Linux from Python 3.14 on, workers are not forked).
    """
    process = multiprocessing.current_process()
    workers = engine.cpu_cores() if wanted is None else wanted
    if workers and getattr(process, "_inheriting", False):
        raise ParameterError(_UNGUARDED)
    return 0 if process.daemon else workers  # a worker of a Pool, or of Celery


def fitting_workers(wanted: int | None, *, batch_bytes: int) -> int:
    """How many workers, so that their batches fit into shared memory: Docker often gives 64 MB."""
    workers = worker_processes(wanted)
    if workers and _SHARED_MEMORY.is_dir():
        # Training and validation workers run side by side, each with one more batch in progress.
        fitting = shutil.disk_usage(_SHARED_MEMORY).free // (2 * (_PREFETCH + 1) * batch_bytes)
        if wanted and fitting < wanted:
            warnings.warn(
                f"num_workers={wanted} does not fit into {_SHARED_MEMORY}: using {fitting}. Give "
                "the machine more shared memory (docker run --shm-size=2g), or reduce batch_size.",
                stacklevel=3,
            )
        workers = min(workers, fitting)
    return workers
