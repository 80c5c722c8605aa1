"""torchvision: the loop that everybody writes, a Dataset and a DataLoader."""

import csv as csv_files
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from predicting import (
    BATCH_SIZE,
    CLASSES,
    COLUMNS,
    IMAGE_SIZE,
    MEAN,
    NUM_WORKERS,
    SIDE,
    STD,
    Weights,
)

TRANSFORMS = {
    "transforms": transforms.Compose(
        [
            transforms.Resize(SIDE),
            transforms.CenterCrop(IMAGE_SIZE),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    ),
    "transforms.v2": v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(SIDE, antialias=True),
            v2.CenterCrop(IMAGE_SIZE),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    ),
}


class _Files(Dataset):
    def __init__(self, files: Sequence[Path], transform: Callable):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.files[row]) as image:
            return self.transform(image.convert("RGB"))


def _loop(weights: Weights, *, transform: str) -> Callable:
    network = weights.network()

    @torch.inference_mode()
    def predict(files: Sequence[Path], csv: Path) -> None:
        loader = DataLoader(
            _Files(files, TRANSFORMS[transform]), batch_size=BATCH_SIZE, num_workers=NUM_WORKERS
        )
        left = iter(files)
        with csv.open("w", newline="", encoding="utf-8") as file:
            table = csv_files.writer(file)
            table.writerow(COLUMNS)
            for images in loader:
                found = network(images).softmax(dim=1).max(dim=1)
                for value, label in zip(found.values.tolist(), found.indices.tolist(), strict=True):
                    table.writerow([next(left), CLASSES[label], value])

    return predict


CONFIGURATIONS = {name: partial(_loop, transform=name) for name in TRANSFORMS}
