"""fastai: ImageDataLoaders, cropped on the workers, normalised in the main process as it does.

Its loaders start their workers anew each epoch; they have no option that keeps them.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from fastai.vision.augment import Flip, FlipItem, RandomResizedCrop
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageDataLoaders, Normalize

from loading import BATCH_SIZE, IMAGE_SIZE, NUM_WORKERS


def _from_folder(data_dir: Path, _scratch: Path, *, flip_batches: bool) -> Iterable:
    normalise = Normalize.from_stats(*imagenet_stats, cuda=False)
    crop = RandomResizedCrop(IMAGE_SIZE)
    return ImageDataLoaders.from_folder(
        data_dir,
        train="Train",
        valid="Val",
        item_tfms=[crop] if flip_batches else [crop, FlipItem()],
        batch_tfms=[Flip(), normalise] if flip_batches else [normalise],
        bs=BATCH_SIZE,
        num_workers=NUM_WORKERS,
        device=torch.device("cpu"),
    ).train


CONFIGURATIONS = {
    "Flip of batches": partial(_from_folder, flip_batches=True),
    "FlipItem": partial(_from_folder, flip_batches=False),
}
