"""Which images a run learns from: listed when it begins, compared when it is started again."""

import os
from collections.abc import Mapping, Sized
from contextlib import suppress
from functools import partial
from typing import Any, cast

import pandas as pd
from torch.utils.data import DataLoader

from resnet_ft.data.dataset import ImageDataset
from resnet_ft.errors import RunError
from resnet_ft.features.store import FeatureDataset
from resnet_ft.training.run import Run

_FILE = "images.csv.gz"
_NAMED = 3  # paths per kind of change


def check_images(run: Run, dataloaders: Mapping[str, DataLoader]) -> None:
    """Raise RunError, naming what changed, where a run began with other images.

    Data sets without a fingerprint, which `make_dataloaders` did not make, are not compared.
    """
    if not (run.has_begun or run.best.exists()):
        return
    recorded: Any = run.config.get("training") or {}
    now = getattr(dataloaders["train"].dataset, "fingerprint", None)
    if None in (now, before := recorded.get("data_fingerprint")) or now == before:
        return
    raise RunError(
        f"{run.folder} began with other images: {_changes(run, recorded, dataloaders)}. To resume "
        "it, bring the data set, and the decisions about it, back to what they were. To train on "
        "the present images, choose another run_dir; "
        f'build_model(..., weights="{run.best}") starts from what this run has learned.'
    )


def record_images(run: Run, dataloaders: Mapping[str, DataLoader]) -> None:
    """List the images of a run that has not begun, for `check_images`, in its folder."""
    if not run.has_begun and (listed := _listing(dataloaders)) is not None:
        save = partial(listed.to_csv, compression="gzip", errors="surrogateescape")
        run.write(_FILE, save)


def _listing(dataloaders: Mapping[str, DataLoader]) -> pd.DataFrame | None:
    """A row per image file: its path below the data folder, split, class and size in bytes."""
    datasets: dict[str, Any] = {split: loader.dataset for split, loader in dataloaders.items()}
    if not all(isinstance(one, ImageDataset | FeatureDataset) for one in datasets.values()):
        return None  # of shards, or made elsewhere
    rows = [
        (path, split, dataset.classes[label])
        for split, dataset in datasets.items()
        for path, label in dataset.samples
    ]
    table = pd.DataFrame(rows, columns=["path", "split", "class_name"], dtype=object)
    root = os.path.commonpath([os.path.dirname(path) for path in table["path"]])
    table["bytes"] = [str(os.path.getsize(path)) for path in table["path"]]
    table["path"] = [os.path.relpath(path, root).replace(os.sep, "/") for path in table["path"]]
    return table.set_index("path")


def _changes(
    run: Run, recorded: Mapping[str, object], dataloaders: Mapping[str, DataLoader]
) -> str:
    """How many files were added, removed and altered, and the first of each."""
    before, now = None, _listing(dataloaders)
    with suppress(OSError, EOFError, ValueError, KeyError):  # no list, or a damaged one
        before = pd.read_csv(
            run.folder / _FILE,
            compression="gzip",
            index_col="path",
            dtype=str,
            keep_default_na=False,
            encoding_errors="surrogateescape",
        )[["split", "class_name", "bytes"]]
    if before is None or now is None:
        counts = {split: len(cast(Sized, one.dataset)) for split, one in dataloaders.items()}
        return f"{recorded.get('images')} files then and {counts} now, some of them others"
    both = before.index.intersection(now.index)
    old, new = before.loc[both], now.loc[both]
    kinds = {
        "added": now.index.difference(both),
        "removed": before.index.difference(both),
        "of another size": both[old["bytes"] != new["bytes"]],
        "in another split or class": both[
            (old["split"] != new["split"]) | (old["class_name"] != new["class_name"])
        ],
    }
    found = (
        f"{len(paths)} {kind} ({', '.join(paths[:_NAMED])}{', ...' if len(paths) > _NAMED else ''})"
        for kind, paths in kinds.items()
        if len(paths)
    )
    return "; ".join(found) or "in another order"
