"""A sample: an image, its label, and the randomness that belongs to it."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.random import mtrand
from torch import Tensor
from torch.utils.data import Dataset

from resnet_ft.data.cache import DecodedImages
from resnet_ft.data.transforms import prepare, split_transform
from resnet_ft.files import fingerprint


def seed_of(*parts: object) -> int:
    """A 64-bit seed, unrelated to those of neighbouring epochs and indices."""
    return int(fingerprint(parts), 16)


_FOR_SAMPLES = np.random.MT19937()  # to exchange NumPy's takes 3 microseconds, its state 100


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators that transforms draw from in a block; then restore them.

    They are torch's for the CPU, Python's `random` and that of `np.random` (which may forget the
    second number of a pair of normal ones: to keep it would take longer than all else here).
    """
    states = torch.default_generator.get_state(), random.getstate(), mtrand.get_bit_generator()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    mtrand.set_bit_generator(_FOR_SAMPLES)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        mtrand.set_bit_generator(states[2])


@dataclass(frozen=True)
class SampleKey:
    """Which sample to load: the epoch decides about its augmentation.

    With a `slot` of the loader's memory, it is part of a batch that `SeededDataset.finish` gets.
    """

    epoch: int
    index: int
    slot: int | None = None


class SeededDataset(Dataset):
    """Samples of one split as (tensor of shape (3, H, W), label) pairs; `read` loads their pixels.

    `dataset[i]` is sample i as epoch 0 sees it, `dataset[epoch, i]` as another epoch does: its
    augmentation depends on (seed, epoch, i) alone, not on which process asks or in which order, as
    far as it draws from torch, `random` or `np.random`, not from a generator of its own.

    `make_dataloaders` sets `preprocessing`, plain data that a checkpoint holds: the `Preprocessing`
    of the evaluation transform, where it is `eval_transform`, and the `ranges` of images that need
    them. It also sets `fingerprint`, which differs between different data sets.
    """

    preprocessing: dict[str, Any] | None = None
    fingerprint: str | None = None

    def __init__(self, classes: Sequence[str], transform: Callable, *, seed: int = 0):
        self.classes = list(classes)
        self._transform = transform
        self._of_image, self._finish = split_transform(transform)
        self.seed = seed

    @property
    def transform(self) -> Callable:
        """What is done to each image; workers have a copy, so it cannot be exchanged later."""
        return self._transform

    def read(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        """Sample `index`: a uint8 array (H, W, 3) that the caller may change, and the label."""
        raise NotImplementedError

    def finish(
        self, images: Tensor, draws: Tensor, empty: Callable[..., Tensor] = torch.empty
    ) -> Tensor:
        """Finish a batch of unfinished images on their device, in memory that `empty` allocates.

        `draws` are what of each image's augmentation is left for here. A batch of images whose
        transform cannot be split is finished already, and returned as it is.
        """
        if self._finish is None:
            return images
        count, height, width, channels = images.shape
        return self._finish(images, draws, empty(count, channels, height, width))

    def __getitem__(self, key: int | tuple[int, int] | SampleKey) -> tuple[Any, ...]:
        """(image, label); of a key with a slot, (unfinished image, draws, label, slot)."""
        if not isinstance(key, SampleKey):
            key = SampleKey(*key) if isinstance(key, tuple) else SampleKey(0, key)
        pixels, label = self.read(key.epoch, key.index)
        with seeded(seed_of(self.seed, key.epoch, key.index)):
            image: Any = prepare(pixels, self._of_image)
            draws = self._finish.draw() if self._finish else []
        image = image if self._finish is None else image.permute(1, 2, 0)
        if key.slot is not None:
            return image, draws, label, key.slot
        if self._finish is not None:
            image = self.finish(image[None], torch.tensor([draws]))[0]
        return image, label


class ImageDataset(SeededDataset):
    """A `SeededDataset` of image files.

    `images` are paths or `DecodedImages`, `labels` their positions in `classes`. `samples` (path
    and label) and `targets` are as in torchvision's ImageFolder, made when asked for. `unreadable`
    lists files of the data folder that `make_dataloaders` left out, and `remarks` say in words what
    it did with others.
    """

    unreadable: pd.DataFrame | None = None
    remarks: Sequence[str] = ()

    def __init__(
        self,
        images: DecodedImages | Iterable[str | Path],
        labels: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        transform: Callable,
        *,
        seed: int = 0,
    ):
        super().__init__(classes, transform, seed=seed)
        self.images = images if isinstance(images, DecodedImages) else DecodedImages(images)
        self.labels = np.asarray(labels, dtype=np.int64)

    @property
    def samples(self) -> list[tuple[str, int]]:
        return list(zip(self.images.paths, self.targets, strict=True))

    @property
    def targets(self) -> list[int]:
        return self.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        """Image `index`, the same in every epoch, and its label."""
        return self.images[index], int(self.labels[index])
