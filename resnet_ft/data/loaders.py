"""From a data folder to data loaders."""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import DataLoader

from resnet_ft.data.dataset import EpochBatchSampler, ImageDataset
from resnet_ft.data.index import DatasetIndex, index_dataset
from resnet_ft.data.survey import verify_images
from resnet_ft.data.transforms import describe_preprocessing, eval_transform, train_transform
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
    seed: int = 0,
) -> dict[str, DataLoader]:
    """Loaders "train", "val" and, where there is a Test folder beside Val, "test".

    Each yields batches of images (N, 3, image_size, image_size), float and normalised, and labels
    (N,). `train` and `val` are transforms of your own in place of `train_transform(image_size)` and
    `eval_transform(image_size)`. `num_workers=None` takes one worker a core, as far as shared
    memory allows. A run gives the same batches for the same `seed`, whatever the number of workers.

    In a script on Windows or macOS, where workers start as new processes, call this below
    `if __name__ == "__main__":`, or with `num_workers=0`.

    Every file is read once first: what cannot be read is left out, counted in a warning and listed
    in `loader.dataset.unreadable`. Raises DatasetError for a data set that cannot be trained on.
    """
    if image_size < 1 or batch_size < 1:
        raise ParameterError(
            f"image_size={image_size} and batch_size={batch_size} must be positive."
        )
    index, unreadable = _readable(index_dataset(data_dir))
    val = val or eval_transform(image_size)
    transforms = {"train": train or train_transform(image_size), "val": val, "test": val}
    workers = _workers(num_workers, batch_bytes=batch_size * 3 * image_size**2 * 4)
    shared = {
        "classes": index.classes,
        "seed": seed,
        "preprocessing": describe_preprocessing(val),
        "unreadable": unreadable,
        "fingerprint": index.fingerprint(),
    }
    return {
        split: _loader(
            ImageDataset(_samples(index, split), transform=transforms[split], **shared),
            batch_size,
            workers,
            training=split == "train",
        )
        for split in index.counts()
    }


def _readable(index: DatasetIndex) -> tuple[DatasetIndex, pd.DataFrame]:
    """The index without the files that cannot be read, and those, with the reasons."""
    unreadable = verify_images(index.paths())
    if unreadable.empty:
        return index, unreadable
    kept = index.without(unreadable["path"])
    left = kept.counts().reindex(columns=list(index.counts()), fill_value=0)
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
    return kept, unreadable


def _samples(index: DatasetIndex, split: str) -> list[tuple[str, int]]:
    labels = {name: label for label, name in enumerate(index.classes)}
    rows = index.split(split)
    return [
        (str(index.root / path), labels[name])
        for path, name in zip(rows["path"], rows["class_name"], strict=True)
    ]


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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = cores if wanted is None else wanted
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
