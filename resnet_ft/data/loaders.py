"""From a data folder to data loaders."""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from resnet_ft import engine
from resnet_ft.data.dataset import EpochBatchSampler, ImageDataset
from resnet_ft.data.decisions import apply_decisions
from resnet_ft.data.decoded import DecodedImages
from resnet_ft.data.filling import decode_once
from resnet_ft.data.index import DatasetIndex, index_dataset
from resnet_ft.data.transforms import (
    describe_preprocessing,
    eval_transform,
    side_before_crop,
    side_for,
    train_transform,
)
from resnet_ft.errors import DatasetError, ParameterError

_PREFETCH = 2
_SHARED_MEMORY = Path("/dev/shm")


def make_dataloaders(
    data_dir: str | Path,
    *,
    image_size: int = 224,
    batch_size: int = 32,
    train: Callable | None = None,
    val: Callable | None = None,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
    cache_size_gb: float | None = None,
    decisions: str | Path | pd.DataFrame | None = None,
    seed: int = 0,
) -> dict[str, DataLoader]:
    """Loaders "train", "val" and, where there is a Test folder beside Val, "test".

    Each yields batches of images (N, 3, image_size, image_size), float and normalised, and labels
    (N,). `train` and `val` are transforms of your own in place of `train_transform(image_size)` and
    `eval_transform(image_size)`. `num_workers=None` takes one worker a core, as far as shared
    memory allows. A run gives the same batches for the same `seed`, whatever the number of workers.

    `decisions` is a table or a CSV file of what to do with single images: see `apply_decisions`.

    In a script on Windows or macOS, where workers start as new processes, call this below
    `if __name__ == "__main__":`, or with `num_workers=0`.

    Every file is decoded once first, at the size that is needed, and kept in `cache_dir` (the
    user's cache folder) for all epochs and for the next time, up to `cache_size_gb` GiB (all that
    the disk has, but for one; 0 keeps nothing). What cannot be read is left out, counted in a
    warning and listed in `loader.dataset.unreadable`. Raises DatasetError for a data set that
    cannot be trained on.
    """
    if image_size < 1 or batch_size < 1:
        raise ParameterError(
            f"image_size={image_size} and batch_size={batch_size} must be positive."
        )
    val = val or eval_transform(image_size)
    transforms = {"train": train or train_transform(image_size), "val": val, "test": val}
    workers = _workers(num_workers, batch_bytes=batch_size * 3 * image_size**2 * 4)
    index = index_dataset(data_dir)
    if decisions is not None:
        index = apply_decisions(index, decisions)
    images, reasons = decode_once(
        (os.path.join(index.root, path) for path in index.table["path"]),
        side_for(val) or side_before_crop(image_size),
        cache_dir=cache_dir,
        cache_size_gb=cache_size_gb,
        num_workers=workers,
    )
    unreadable = _table(images, reasons)
    readable = index.without(unreadable["path"])
    if reasons:
        _report(index, readable, unreadable)
    labels = pd.Categorical(index.table["class_name"], index.classes).codes
    is_readable = ~np.isin(np.arange(len(images)), list(reasons))
    shared = {
        "classes": index.classes,
        "seed": seed,
        "preprocessing": describe_preprocessing(val),
        "unreadable": unreadable,
        "fingerprint": readable.fingerprint(),
    }
    loaders = {}
    for split in index.counts():
        rows = np.flatnonzero((index.table["split"] == split) & is_readable)
        data = ImageDataset(images.take(rows), labels[rows], transform=transforms[split], **shared)
        loaders[split] = _loader(data, batch_size, workers, training=split == "train")
    return loaders


def _table(images: DecodedImages, reasons: dict[int, str]) -> pd.DataFrame:
    rows = [(images.paths[row], reason) for row, reason in sorted(reasons.items())]
    return pd.DataFrame(rows, columns=["path", "reason"])


def _report(index: DatasetIndex, readable: DatasetIndex, unreadable: pd.DataFrame) -> None:
    """Warn of the files that are left out; refuse a split that has lost a whole class."""
    left = readable.counts().reindex(columns=list(index.counts()), fill_value=0)
    for split, before in index.counts().items():
        empty = [name for name in index.classes if before[name] and not left[split][name]]
        if empty:
            raise DatasetError(
                f"{index.root}: not one image of class {empty[0]} in {split} can be read: "
                f"{unreadable['path'].iloc[0]}: {unreadable['reason'].iloc[0]}. Replace them."
            )
    listing = "\n".join(f"  {path}: {reason}" for path, reason in unreadable.head(10).values)
    more = f"\n  and {len(unreadable) - 10} more" if len(unreadable) > 10 else ""
    warnings.warn(
        f"{len(unreadable)} of {len(index.table)} files cannot be read and are left out "
        f"(all of them in loader.dataset.unreadable):\n{listing}{more}",
        stacklevel=3,
    )


def _loader(dataset: ImageDataset, batch_size: int, workers: int, *, training: bool) -> DataLoader:
    batches = EpochBatchSampler(
        len(dataset), batch_size, shuffle=training, join_last=training, seed=dataset.seed
    )
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=_PREFETCH if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(dataset.seed),
    )


def _workers(wanted: int | None, *, batch_bytes: int) -> int:
    """How many workers, so that their batches fit into shared memory: Docker often gives 64 MB."""
    workers = engine.cpu_cores() if wanted is None else wanted
    if workers and _SHARED_MEMORY.is_dir():
        # Training and validation workers live side by side and keep a batch in the making as well.
        fitting = shutil.disk_usage(_SHARED_MEMORY).free // (2 * (_PREFETCH + 1) * batch_bytes)
        if wanted and fitting < wanted:
            warnings.warn(
                f"num_workers={wanted} does not fit into {_SHARED_MEMORY}: using {fitting}. Give "
                "the machine more shared memory (docker run --shm-size=2g), or take less a batch.",
                stacklevel=3,
            )
        workers = min(workers, fitting)
    return workers
