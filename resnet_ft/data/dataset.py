"""A sample: an image, its label, and the randomness that belongs to it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from resnet_ft.data.decoded import DecodedImages
from resnet_ft.data.transforms import prepare
from resnet_ft.files import fingerprint

# Which sample to deliver: the epoch decides about its augmentation.
SampleKey = tuple[int, int]


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
        self.transform = transform
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

    def __getitem__(self, key: int | SampleKey) -> tuple[Tensor, int]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        pixels = self.images[index]
        # The transforms draw from the default generator of the CPU: lend it to this sample.
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(_seed(self.seed, epoch, index))
        try:
            return prepare(pixels, self.transform), int(self.labels[index])
        finally:
            torch.default_generator.set_state(state)


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Batches of (epoch, index), shuffled anew each epoch by (seed, epoch).

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
        seed: int = 0,
    ):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.join_last = join_last
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, order = 0, torch.arange(self.num_samples)
        if self.shuffle:
            epoch, self.epoch = self.epoch, self.epoch + 1
            generator = torch.Generator().manual_seed(_seed(self.seed, epoch))
            order = torch.randperm(self.num_samples, generator=generator)
        for batch in range(len(self)):
            start, is_last = batch * self.batch_size, batch == len(self) - 1
            stop = self.num_samples if is_last else start + self.batch_size
            yield [(epoch, index) for index in order[start:stop].tolist()]

    def __len__(self) -> int:
        batches, rest = divmod(self.num_samples, self.batch_size)
        joins = self.join_last and rest == 1 and batches > 0
        return batches + (rest > 0 and not joins)


def _seed(*parts: int) -> int:
    """Seeds of 64 bits that have nothing in common, also for neighbouring epochs and indices."""
    return int(fingerprint(parts), 16)
