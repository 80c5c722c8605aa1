"""torchvision as in PyTorch's transfer-learning tutorial: ImageFolder, transforms, DataLoader."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from loading import BATCH_SIZE, IMAGE_SIZE, NUM_WORKERS

NORMALISED = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
TRANSFORMS = {
    "transforms": transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(**NORMALISED),
        ]
    ),
    "transforms.v2": v2.Compose(
        [
            v2.RandomResizedCrop(IMAGE_SIZE),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(**NORMALISED),
        ]
    ),
}


def _image_folder(data_dir: Path, _scratch: Path, *, transform: str) -> Iterable:
    return DataLoader(
        ImageFolder(data_dir / "Train", TRANSFORMS[transform]),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=NUM_WORKERS,
        persistent_workers=True,
    )


CONFIGURATIONS = {
    "transforms": partial(_image_folder, transform="transforms"),
    "transforms.v2": partial(_image_folder, transform="transforms.v2"),
}
