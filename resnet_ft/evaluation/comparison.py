"""Runs side by side on the same images, so that nobody celebrates chance."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from resnet_ft.errors import ParameterError
from resnet_ft.evaluation.predictions import check_paths, load_predictions
from resnet_ft.evaluation.scores import wilson_interval
from resnet_ft.files import user_path


def compare_runs(runs: Sequence[Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs (or their folders) on the images that notebook 4 scored, beside the first of them.

    The first table has a row per run: `accuracy`, its interval `from` and `to`, the images that are
    `better` and `worse` than in the first, and `p`, the probability of such a difference between
    equally good runs: the exact test of McNemar (Psychometrika 12, 1947), times the number of runs
    that are compared (Bonferroni), as the best of many is better by chance. The second has a row
    per class, the largest change on top: `images` and the share that each run predicts right. A
    sentence per run is printed. Raises ParameterError for a single run and where images or labels
    differ, DatasetError where predictions are missing.
    """
    folders = [user_path(getattr(run, "folder", run)) for run in runs]
    names = [folder.name for folder in folders]
    names = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    if len(set(names)) < max(2, len(names)):
        raise ParameterError(f"Give two runs or more, each of them once, not {names}.")
    first, *others = [_by_image(folder) for folder in folders]
    right = pd.DataFrame({names[0]: first["predicted"] == first["label"]})
    for name, table in zip(names[1:], others, strict=True):
        same = table["label"].reindex(first.index) == first["label"]
        differ = table.index.difference(first.index).union(same.index[~same])
        if len(differ):
            raise ParameterError(
                f"{name} and {names[0]} were scored on different images or labels: {len(differ)} "
                f"differ, such as {differ[0]}. Score both on the same data: notebook 4, data_dir."
            )
        right[name] = table["predicted"] == table["label"]
    reference = right[names[0]]
    table = pd.DataFrame({"accuracy": right.mean()})
    intervals = [wilson_interval(accuracy, len(right)) for accuracy in right.mean()]
    table["from"], table["to"] = np.transpose(intervals)
    table["better"] = right.gt(reference, axis=0).sum()
    table["worse"] = right.lt(reference, axis=0).sum()
    differ = table["better"] + table["worse"]  # without any, one of one half is as good
    tests = map(binomtest, table["better"], differ.clip(lower=1))
    table["p"] = [min(1.0, len(others) * test.pvalue) for test in tests]
    for run in table.iloc[1:].itertuples():
        chance = "the difference may be chance" if run.p > 0.05 else "that is more than chance"
        print(
            f"{run.Index}: {100 * (run.accuracy - table['accuracy'].iloc[0]):+.1f} points beside "
            f"{names[0]}, {run.better} images better and {run.worse} worse; {chance} "
            f"(p = {run.p:.2g})."
        )
    classes = right.groupby(first["label"]).mean()
    change = (classes.max(axis=1) - classes.min(axis=1)).sort_values(ascending=False, kind="stable")
    classes.insert(0, "images", first["label"].value_counts())
    return table, classes.loc[change.index]


def _by_image(folder: Path) -> pd.DataFrame:
    """The predictions of a run, by the path of each image below the folder that they share."""
    table = check_paths(load_predictions(folder / "evaluation.csv").table)
    root = os.path.commonpath([os.path.dirname(path) for path in table["path"]])
    return table.set_index(pd.Index([os.path.relpath(path, root) for path in table["path"]]))
