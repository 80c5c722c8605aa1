"""From a data folder to data loaders."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from resnet_ft.data.batches import EpochBatchSampler, fitting_workers, image_loader, slots_for
from resnet_ft.data.cache import DecodedImages, decode_once
from resnet_ft.data.dataset import ImageDataset
from resnet_ft.data.decisions import apply_decisions
from resnet_ft.data.index import DatasetIndex, index_dataset
from resnet_ft.data.shard_loader import shard_loaders
from resnet_ft.data.shards import holds_shards
from resnet_ft.data.transforms import (
    describe_preprocessing,
    eval_transform,
    side_before_crop,
    side_for,
    train_transform,
)
from resnet_ft.errors import DatasetError, ParameterError


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
    `eval_transform(image_size)`: give the `image_size` that they are made for, since photographs
    are decoded to a short side of 256/224 of it. `num_workers=None` takes one worker a core, as far
    as shared memory allows. A run gives the same batches for the same `seed`, whatever the number
    of workers.

    `decisions` is a table or a CSV file of what to do with single images: see `apply_decisions`.

    In a script on Windows or macOS, where workers start as new processes, call this below
    `if __name__ == "__main__":`, or with `num_workers=0`.

    Every file is decoded once first, at the size that is needed, and kept in `cache_dir` (the
    user's cache folder) for all epochs and for the next time, up to `cache_size_gb` GiB (all that
    the disk has, but for one; 0 keeps nothing). What cannot be read is left out, counted in a
    warning and listed in `loader.dataset.unreadable`. Raises DatasetError for a data set that
    cannot be trained on.

    `data_dir` may also be a folder of tar shards that `pack_dataset` wrote, or the address of one
    (http(s), what `webdataset` opens, or "pipe:" and a command; "{}" stands for the file's name).
    Nothing is decoded beforehand then; of shards from elsewhere, `cache_dir` keeps those that fit,
    and at least the eight in use. In training, samples of about five shards are mixed. Each process
    of several reads its part, and `batch_size` is that of all. Reading is tried again; then,
    DatasetError or ImageError names the shard and the sample.
    """
    if image_size < 1 or batch_size < 1:
        raise ParameterError(
            f"image_size={image_size} and batch_size={batch_size} must be positive."
        )
    val = val or eval_transform(image_size)
    transforms = {"train": train or train_transform(image_size), "val": val, "test": val}
    side = side_for(val) or side_before_crop(image_size)
    workers = fitting_workers(num_workers, batch_bytes=batch_size * 3 * image_size**2 * 4)
    cache = {"cache_dir": cache_dir, "cache_size_gb": cache_size_gb, "num_workers": workers}
    if holds_shards(data_dir):
        if decisions is not None:
            raise ParameterError("decisions are about files: give them to pack_dataset instead.")
        return shard_loaders(
            data_dir, transforms, side=side, batch_size=batch_size, seed=seed, **cache
        )
    index = index_dataset(data_dir)
    if decisions is not None:
        index = apply_decisions(index, decisions)
    paths = (os.path.join(index.root, path) for path in index.images)
    images, reasons = decode_once(paths, side, **cache)
    datasets = _datasets(index, images, reasons, transforms, seed)
    return {split: _loader(split, data, batch_size, workers) for split, data in datasets.items()}


def _datasets(
    index: DatasetIndex,
    images: DecodedImages,
    reasons: dict[int, str],
    transforms: dict[str, Callable],
    seed: int,
) -> dict[str, ImageDataset]:
    """A data set for each split, of the images that can be read."""
    unreadable = _table(images, reasons)
    readable = index
    if reasons:
        readable = index.without(unreadable["path"])
        _report(index, readable, unreadable)
    shared = {
        "classes": index.classes,
        "seed": seed,
        "preprocessing": describe_preprocessing(transforms["val"]),
        "unreadable": unreadable,
        "fingerprint": readable.fingerprint(),
    }
    labels = pd.Categorical(index.labels["class_name"], index.classes).codes
    is_readable = ~np.isin(np.arange(len(images)), list(reasons))
    datasets = {}
    for split in index.counts():
        rows = np.flatnonzero((index.labels["split"] == split) & is_readable)
        datasets[split] = ImageDataset(
            images.take(rows), labels[rows], transform=transforms[split], **shared
        )
    return datasets


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
        f"{len(unreadable)} of {len(index.images)} files cannot be read and are left out "
        f"(all of them in loader.dataset.unreadable):\n{listing}{more}",
        stacklevel=4,
    )


def _loader(split: str, dataset: ImageDataset, batch_size: int, workers: int) -> DataLoader:
    batches = EpochBatchSampler(
        len(dataset),
        batch_size,
        shuffle=split == "train",
        join_last=split == "train",
        slots=slots_for(workers),
        seed=dataset.seed,
    )
    return image_loader(dataset, batches, workers)
