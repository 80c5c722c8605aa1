"""This library: decoded once when the loaders are built, then read from memory-mapped files."""

from collections.abc import Iterable
from pathlib import Path

from loading import BATCH_SIZE, IMAGE_SIZE, NUM_WORKERS
from resnet_ft import make_dataloaders, train_transform


def _with_cache(data_dir: Path, scratch: Path) -> Iterable:
    loaders = make_dataloaders(
        data_dir,
        image_size=IMAGE_SIZE,
        batch_size=BATCH_SIZE,
        train=train_transform(IMAGE_SIZE, strength="light"),
        num_workers=NUM_WORKERS,
        cache_dir=scratch,
    )
    return loaders["train"]


CONFIGURATIONS = {"cache_dir": _with_cache}
