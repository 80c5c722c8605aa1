"""A sample: an image, its label, and the randomness that belongs to it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from resnet_ft.data.decoded import DecodedImages
from resnet_ft.data.transforms import prepare, split_transform
from resnet_ft.files import fingerprint


class SampleKey(NamedTuple):
    """Which sample to deliver: the epoch decides about its augmentation.

    With a `slot` it is one of a batch: it lacks what `ImageDataset.finish` does to the whole, and
    says which slot of the loader's memory the batch goes to.
    """

    epoch: int
    index: int
    slot: int | None = None


class ImageDataset(Dataset):
    """Images of one split as (tensor of shape (3, H, W), label) pairs.

    `images` are paths or `DecodedImages`, `labels` their positions in `classes`.
    `dataset[i]` is image i as epoch 0 sees it, `dataset[epoch, i]` as another epoch does: its
    augmentation depends on (seed, epoch, i) alone, whoever asks for it and in which order.
    `samples` (path and label) and `targets` are as in torchvision's ImageFolder, made when asked
    for; `preprocessing` describes the evaluation transform for a checkpoint, `unreadable` lists
    files of the data folder that were left out, `fingerprint` tells one data set from another.
    """

    def __init__(
        self,
        images: DecodedImages | Iterable[str | Path],
        labels: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        transform: Callable,
        *,
        seed: int = 0,
        preprocessing: dict | None = None,
        unreadable: pd.DataFrame | None = None,
        fingerprint: str | None = None,
    ):
        self.images = images if isinstance(images, DecodedImages) else DecodedImages(images)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = list(classes)
        self._transform = transform
        self._of_image, self._of_batch = split_transform(transform)
        self.seed = seed
        self.preprocessing = preprocessing
        self.unreadable = unreadable
        self.fingerprint = fingerprint

    @property
    def samples(self) -> list[tuple[str, int]]:
        return list(zip(self.images.paths, self.targets, strict=True))

    @property
    def targets(self) -> list[int]:
        return self.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def transform(self) -> Callable:
        """What is done to each image; workers have a copy, so it cannot be exchanged later."""
        return self._transform

    def finish(self, images: Tensor, empty: Callable[..., Tensor] = torch.empty) -> Tensor:
        """What is left to do to a batch of unfinished images, in memory that `empty` makes."""
        return images if self._of_batch is None else self._of_batch(images, empty)

    def __getitem__(self, key: int | tuple[int, int] | SampleKey) -> tuple:
        epoch, index, slot = SampleKey(*key) if isinstance(key, tuple) else SampleKey(0, key)
        pixels, label = self.images[index], int(self.labels[index])
        # The transforms draw from the default generator of the CPU: lend it to this sample.
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(_seed(self.seed, epoch, index))
        try:
            image = prepare(pixels, self.transform if slot is None else self._of_image)
        finally:
            torch.default_generator.set_state(state)
        if slot is None:
            return image, label
        return image if self._of_batch is None else image.permute(1, 2, 0), label, slot


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Batches of sample keys, shuffled anew each epoch by (seed, epoch), in `slots` in turn.

    The epoch moves on with each pass, or is what `set_epoch` says. Without `shuffle` every pass is
    epoch 0, in order. With `join_last`, a last batch of one joins the batch before it, since batch
    normalisation cannot learn from a single sample.
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

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = 0
        if self.shuffle:
            epoch, self.epoch = self.epoch, self.epoch + 1
        generator = torch.Generator().manual_seed(_seed(self.seed, epoch))
        samples = self._samples(epoch, generator)
        for batch in range(len(self)):
            start, is_last = batch * self.batch_size, batch == len(self) - 1
            rows = samples[start : None if is_last else start + self.batch_size].tolist()
            yield [SampleKey(*row, slot=batch % self.slots) for row in rows]

    def _samples(self, epoch: int, generator: torch.Generator) -> Tensor:
        """Epoch and index (N, 2) of the samples of a pass, in its order."""
        count = self.num_samples
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        return torch.stack([torch.full_like(order, epoch), order], dim=1)

    def __len__(self) -> int:
        batches, rest = divmod(self.num_samples, self.batch_size)
        joins = self.join_last and rest == 1 and batches > 0
        return batches + (rest > 0 and not joins)


def _seed(*parts: int) -> int:
    """Seeds of 64 bits that have nothing in common, also for neighbouring epochs and indices."""
    return int(fingerprint(parts), 16)
