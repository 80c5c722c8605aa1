"""From a data folder to data loaders."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from resnet_ft.data.batches import EpochBatchSampler, ImageLoader, fitting_workers
from resnet_ft.data.cache import decode_once
from resnet_ft.data.dataset import ImageDataset
from resnet_ft.data.decisions import apply_decisions
from resnet_ft.data.images import Opener
from resnet_ft.data.index import DatasetIndex, index_dataset
from resnet_ft.data.shards import ShardBatchSampler, ShardDataset, ShardFiles, holds_shards
from resnet_ft.data.transforms import (
    as_preprocessing,
    eval_transform,
    preprocessing_in,
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
    open_image: Opener | None = None,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
    cache_size_gb: float | None = None,
    decisions: str | Path | pd.DataFrame | None = None,
    seed: int = 0,
) -> dict[str, DataLoader]:
    """Loaders "train", "val" and, where there is a Test folder beside Val, "test".

    Each yields batches of images (N, 3, image_size, image_size), float and normalised, and labels
    (N,). `train` and `val` are transforms in place of `train_transform(image_size)` and
    `eval_transform(image_size)`, such as those of a network's own `Preprocessing`; `train` alone
    may be left out, and follows `val`. With a `val`
    that is no `eval_transform`, give the `image_size` that it is made for, since images are decoded
    to a short side of 256/224 of it. `open_image` is your own function from a path to a PIL
    image, for files that the library does not read, or reads in another way than you want; it is
    recognised by its name and code, so give another `cache_dir` when something else changes what it
    returns. `decisions` are about single images: see
    `apply_decisions`. `num_workers=None` takes one worker per core, as far as shared memory allows.
    The same `seed` gives the same batches, whatever the number of workers. In a script on Windows
    or macOS, call this below `if __name__ == "__main__":`, or with `num_workers=0`.

    Every file is decoded once first and kept in `cache_dir` (default: the user's cache folder), up
    to `cache_size_gb` GiB (default: what the disk has, less one; 0 keeps nothing). Grey values
    beyond 8 bits (microscopes, X-ray, elevation) have one range for all files, which is printed and
    kept in `loader.dataset.preprocessing`. Files that cannot be read are left out, counted in a
    warning and listed in `loader.dataset.unreadable`. Raises DatasetError for a data set that
    cannot be trained on.

    `data_dir` may also be a folder of tar shards that `pack_dataset` wrote, or the address of one
    (http(s), what `webdataset` opens, or "pipe:" and a command; "{}" stands for the file's name).
    Then nothing is decoded beforehand; of remote shards, `cache_dir` keeps those that fit, and at
    least the eight in use. In training, samples of about five shards are mixed. Each of several
    processes reads its part of `batch_size`. Raises DatasetError or ImageError, naming shard and
    sample, if one still cannot be read after retries.
    """
    if image_size < 1 or batch_size < 1:
        raise ParameterError(
            f"image_size={image_size} and batch_size={batch_size} must be positive."
        )
    val = val or eval_transform(image_size)
    found = preprocessing_in(val)
    train = train or train_transform(found or image_size)
    transforms = {"train": train, "val": val, "test": val}
    _check_normalisation(train, val)
    preprocessing = found.described() if found else None
    size = found or as_preprocessing(image_size)
    workers = fitting_workers(num_workers, batch_bytes=batch_size * 3 * size.image_size**2 * 4)
    loaders: dict[str, DataLoader] = {}
    if holds_shards(data_dir):
        if decisions is not None:
            raise ParameterError("decisions are about files: give them to pack_dataset instead.")
        if open_image is not None:
            raise ParameterError("open_image is about files: convert them before pack_dataset.")
        shards = ShardFiles(data_dir, cache_dir, cache_size_gb)
        for split, listed in shards.index.splits.items():
            counts = [shard.samples for shard in listed]
            order = ShardBatchSampler(counts, batch_size, shuffle=split == "train", seed=seed)
            samples = ShardDataset(shards, split, transforms[split], order, size)
            samples.preprocessing = preprocessing
            loaders[split] = ImageLoader(samples, order, workers)
        return loaders

    found_files = index = index_dataset(data_dir)
    if decisions is not None:
        index = apply_decisions(index, decisions)
    remarks = _decided(found_files, index)
    if found_files.val_is_set_aside:
        remarks.append("a fifth of each class set aside for validation")
    images, reasons = decode_once(
        (os.path.join(index.root, path) for path in index.images),
        size.side,
        interpolation=size.interpolation,
        opener=open_image,
        cache_dir=cache_dir,
        cache_size_gb=cache_size_gb,
        num_workers=workers,
    )
    if images.ranges:
        preprocessing = {**(preprocessing or {}), "ranges": dict(images.ranges)}
    failed = [(images.paths[row], reason) for row, reason in sorted(reasons.items())]
    unreadable = pd.DataFrame(failed, columns=["path", "reason"])
    if reasons:
        readable = np.delete(np.arange(len(images)), list(reasons))
        _report_unreadable(index, index.take(readable), unreadable)
        index, images = index.take(readable), images.take(readable)
        remarks.append(f"{len(unreadable):,} cannot be read")
    fingerprint = index.fingerprint()
    labels = pd.Categorical(index.labels["class_name"], index.classes).codes
    for split in index.counts():
        rows = np.flatnonzero(index.labels["split"] == split)
        dataset = ImageDataset(
            images.take(rows), labels[rows], index.classes, transforms[split], seed=seed
        )
        dataset.unreadable, dataset.fingerprint = unreadable, fingerprint
        dataset.preprocessing, dataset.remarks = preprocessing, remarks
        batches = EpochBatchSampler(len(rows), batch_size, shuffle=split == "train", seed=seed)
        loaders[split] = ImageLoader(dataset, batches, workers)
    return loaders


def describe_loaders(dataloaders: Mapping[str, DataLoader]) -> str:
    """What loaders hold, in a line: "196 train, 49 val, 2 classes; 1 excluded by you"."""
    datasets: dict[str, Any] = {split: loader.dataset for split, loader in dataloaders.items()}
    counts = [f"{len(dataset):,} {split}" for split, dataset in datasets.items()]
    first = next(iter(datasets.values()))
    classes = [f"{len(first.classes):,} classes"] if hasattr(first, "classes") else []
    return "; ".join([", ".join(counts + classes), *getattr(first, "remarks", [])])


def _decided(before: DatasetIndex, after: DatasetIndex) -> list[str]:
    """How many images decisions have left out, or given to another class or split."""
    excluded = len(before.images) - len(after.images)
    remarks = [f"{excluded:,} excluded by you"] if excluded else []
    if after is before:
        return remarks
    labels = before.table.set_index("path").loc[list(after.images)]
    for column, what in (("class_name", "relabelled"), ("split", "moved")):
        if changed := int((labels[column].to_numpy() != after.labels[column].to_numpy()).sum()):
            remarks.append(f"{changed:,} {what} by you")
    return remarks


def _check_normalisation(train: Callable, val: Callable) -> None:
    """Raise ParameterError where validation would show the network other values than training."""
    last = [(getattr(one, "transforms", None) or [None])[-1] for one in (train, val)]
    if all(isinstance(one, v2.Normalize) for one in last) and repr(last[0]) != repr(last[1]):
        raise ParameterError(
            f"Training images end in {last[0]}, validation images in {last[1]}: the network would "
            "see different values. Give both train= and val=, such as "
            "train_transform(preprocessing) and eval_transform(preprocessing)."
        )


def _report_unreadable(
    index: DatasetIndex, readable: DatasetIndex, unreadable: pd.DataFrame
) -> None:
    """Warn of the files that are left out; refuse a split that has lost all images of a class."""
    for split, class_name in readable.lost_since(index):
        raise DatasetError(
            f"{index.root}: not one image of class {class_name} in {split} can be read: "
            f"{unreadable['path'].iloc[0]}: {unreadable['reason'].iloc[0]}. Replace them."
        )
    listing = "\n".join(f"  {path}: {reason}" for path, reason in unreadable.head(10).values)
    more = f"\n  and {len(unreadable) - 10} more" if len(unreadable) > 10 else ""
    warnings.warn(
        f"{len(unreadable)} of {len(index.images)} files cannot be read and are left out "
        f"(all of them in loader.dataset.unreadable):\n{listing}{more}",
        stacklevel=3,
    )
