"""A sample: an image, its label, and the randomness that belongs to it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from resnet_ft.data.cache import DecodedImages
from resnet_ft.data.transforms import prepare, split_transform
from resnet_ft.files import fingerprint


def seed_of(*parts: int) -> int:
    """Seeds of 64 bits that have nothing in common, also for neighbouring epochs and indices."""
    return int(fingerprint(parts), 16)


class SampleKey(NamedTuple):
    """Which sample to deliver: the epoch decides about its augmentation.

    With a `slot` it is one of a batch: it lacks what `SeededDataset.finish` does to the whole, and
    says which slot of the loader's memory the batch goes to.
    """

    epoch: int
    index: int
    slot: int | None = None


class SeededDataset(Dataset):
    """Samples of one split as (tensor of shape (3, H, W), label) pairs; `read` says of what.

    `dataset[i]` is sample i as epoch 0 sees it, `dataset[epoch, i]` as another epoch does: its
    augmentation depends on (seed, epoch, i) alone, whoever asks for it and in which order.
    """

    def __init__(
        self,
        classes: Sequence[str],
        transform: Callable,
        *,
        seed: int = 0,
        preprocessing: dict | None = None,
        fingerprint: str | None = None,
    ):
        self.classes = list(classes)
        self._transform = transform
        self._of_image, self._of_batch = split_transform(transform)
        self.seed = seed
        self.preprocessing = preprocessing
        self.fingerprint = fingerprint

    @property
    def transform(self) -> Callable:
        """What is done to each image; workers have a copy, so it cannot be exchanged later."""
        return self._transform

    def read(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        """Sample `index`: a uint8 array (H, W, 3) of one's own, and the label."""
        raise NotImplementedError

    def finish(self, images: Tensor, empty: Callable[..., Tensor] = torch.empty) -> Tensor:
        """What is left to do to a batch of unfinished images, in memory that `empty` makes."""
        return images if self._of_batch is None else self._of_batch(images, empty)

    def __getitem__(self, key: int | tuple[int, int] | SampleKey) -> tuple:
        epoch, index, slot = SampleKey(*key) if isinstance(key, tuple) else SampleKey(0, key)
        pixels, label = self.read(epoch, index)
        # The transforms draw from the default generator of the CPU: lend it to this sample.
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(seed_of(self.seed, epoch, index))
        try:
            image = prepare(pixels, self.transform if slot is None else self._of_image)
        finally:
            torch.default_generator.set_state(state)
        if slot is None:
            return image, label
        return image if self._of_batch is None else image.permute(1, 2, 0), label, slot


class ImageDataset(SeededDataset):
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
        unreadable: pd.DataFrame | None = None,
        seed: int = 0,
        preprocessing: dict | None = None,
        fingerprint: str | None = None,
    ):
        super().__init__(
            classes, transform, seed=seed, preprocessing=preprocessing, fingerprint=fingerprint
        )
        self.images = images if isinstance(images, DecodedImages) else DecodedImages(images)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.unreadable = unreadable

    @property
    def samples(self) -> list[tuple[str, int]]:
        return list(zip(self.images.paths, self.targets, strict=True))

    @property
    def targets(self) -> list[int]:
        return self.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        """Image `index`, the same in every epoch: a uint8 array (H, W, 3), and its label."""
        return self.images[index], int(self.labels[index])
