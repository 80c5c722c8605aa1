"""The loader at the default augmentation, beside its mild one and the tutorial's loader, in turns.

`python -m loading.defaults data_dir`; the last line printed is JSON: images per second of later
epochs, the median, of loaders that take turns.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from loading import BATCH_SIZE, IMAGE_SIZE, NUM_WORKERS
from loading.torchvision import NORMALISED
from resnet_ft import make_dataloaders, train_transform

_TURNS = 5
_CROP = (0.35, 1.0)  # what the default augmentation, "medium", does
_COLOUR = (0.2, 0.2, 0.2)
_TUTORIAL = {
    "transforms": transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE, _CROP),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(*_COLOUR),
            transforms.ToTensor(),
            transforms.Normalize(**NORMALISED),
        ]
    ),
    "transforms.v2": v2.Compose(
        [
            v2.RandomResizedCrop(IMAGE_SIZE, _CROP),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ColorJitter(*_COLOUR),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(**NORMALISED),
        ]
    ),
}


def measure(data_dir: Path) -> dict[str, object]:
    """Images per second, the median of turns, and that of their ratios to the mild augmentation."""
    with tempfile.TemporaryDirectory(prefix="kept-", dir=data_dir.parent) as scratch:
        loaders = {name: _tutorial(data_dir, each) for name, each in _TUTORIAL.items()}
        loaders |= {
            strength: _ours(data_dir, scratch, strength) for strength in ("light", "medium")
        }
        turns = [{name: _speed(one) for name, one in loaders.items()} for _ in range(_TURNS + 1)]
    later = turns[1:]  # in the first, workers start
    return {
        **{name: round(statistics.median(turn[name] for turn in later), 1) for name in loaders},
        "medium_to_light": round(statistics.median(t["medium"] / t["light"] for t in later), 3),
        "turns": [{name: round(speed, 1) for name, speed in turn.items()} for turn in later],
        "threads": torch.get_num_threads(),
    }


def _tutorial(data_dir: Path, transform: object) -> DataLoader:
    return DataLoader(
        ImageFolder(data_dir / "Train", transform),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=NUM_WORKERS,
        persistent_workers=True,
    )


def _ours(data_dir: Path, cache_dir: str, strength: str) -> DataLoader:
    loaders = make_dataloaders(
        data_dir,
        image_size=IMAGE_SIZE,
        batch_size=BATCH_SIZE,
        train=train_transform(IMAGE_SIZE, strength=strength),
        num_workers=NUM_WORKERS,
        cache_dir=cache_dir,
    )
    return loaders["train"]


def _speed(loader: Iterable) -> float:
    started = time.perf_counter()
    delivered = sum(len(images) for images, _ in loader)
    return delivered / (time.perf_counter() - started)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
