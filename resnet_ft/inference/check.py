"""Exported files answer in processes of their own, and are compared with their checkpoint."""

import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import interpolate

from resnet_ft.data.cache import DecodedImages
from resnet_ft.data.decisions import apply_decisions
from resnet_ft.data.index import index_dataset
from resnet_ft.data.transforms import Preprocessing, prepare, preprocessing_in, split_transform
from resnet_ft.errors import DatasetError, ImageError, ParameterError, ResnetFtError
from resnet_ft.files import is_on_drive, user_path
from resnet_ft.inference.fresh import of_predictor, timed
from resnet_ft.inference.predictor import Predictor
from resnet_ft.staging.drive import project_root
from resnet_ft.staging.stage import stage_dataset
from resnet_ft.training.run import Run

AnyModel = str | os.PathLike[str]
_MOST = 300  # images


def compare_exports(
    model: AnyModel, exports: Mapping[str, str | Path], *, data_dir: str | Path | None = None
) -> pd.DataFrame:
    """A row for the checkpoint and one for each exported file: what it answers, and how quickly.

    `model` is the folder of a run or a checkpoint file; `exports` names files. Each is loaded in a
    fresh process and gets the same images, one by one: up to 300 of the run's validation images, or
    of those in `data_dir`, or noise where there are none, without accuracy; `attrs["images"]` says
    which. Columns: `agreement` (the share of images with the checkpoint's class),
    `largest_difference` (of a probability), `accuracy`, `megabytes`, and `milliseconds` (per image,
    the median, on as many threads as torch uses).
    """
    predictor = Predictor.load(os.fspath(model))
    try:
        images, labels = photographs(model, predictor, "val", _MOST, data_dir)
        described = f"{len(images)} validation images"
    except DatasetError:
        if data_dir is not None:
            raise
        size = square(predictor).image_size
        coarse = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        images = (255 * interpolate(coarse, (size, size))).byte().numpy()
        labels, described = None, f"{len(images)} images of noise (no data_dir was given)"
    rows, found = {}, {"checkpoint": timed(of_predictor(predictor), images)}
    with tempfile.TemporaryDirectory(prefix="resnet_ft-") as folder:
        np.save(f"{folder}/images.npy", images)
        found |= {name: _in_fresh_process(file, folder) for name, file in exports.items()}
    expected, _ = found["checkpoint"]
    for name, file in {"checkpoint": checkpoint_file(model), **exports}.items():
        answers, seconds = found[name]
        chosen = answers.argmax(axis=1)
        rows[name] = {
            "agreement": (chosen == expected.argmax(axis=1)).mean(),
            "largest_difference": np.abs(answers - expected).max(),
            "accuracy": np.nan if labels is None else (chosen == labels).mean(),
            "megabytes": user_path(file).stat().st_size / 1e6,
            "milliseconds": 1000 * np.median(seconds),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.attrs["images"] = described
    return table


def photographs(
    model: AnyModel, predictor: Predictor, split: str, most: int, data_dir: str | Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Images of a split, evenly spread, as the model's bytes (N, 3, H, W), and their labels (N,).

    Raises DatasetError where the run's `data_source` is not found and no `data_dir` is given.
    """
    paths, names = photograph_files(model, split, most, data_dir)
    wanted = square(predictor)
    decoded = DecodedImages(
        paths, wanted.side, interpolation=wanted.interpolation, ranges=predictor.ranges
    )
    cut, _ = split_transform(predictor.transform)  # the second part is in the exported file
    numbers = {name: number for number, name in enumerate(predictor.classes)}
    images, labels = [], []
    for row, name in enumerate(names):
        with suppress(ImageError):
            images.append(np.asarray(prepare(decoded[row], cut)))
            labels.append(numbers.get(name, -1))
    if not images:
        raise DatasetError(f"None of {len(paths)} images can be read, such as {paths[0]}.")
    return np.stack(images), np.array(labels)


def photograph_files(
    model: AnyModel, split: str, most: int, data_dir: str | Path | None
) -> tuple[list[Path], list[str]]:
    """The files of `photographs`, and their classes."""
    run = Run(checkpoint_file(model).parent)
    try:
        source = data_dir or run.data_source
        if not (is_on_drive(source) and user_path(source).is_dir()):  # a few images need no copy
            source = stage_dataset(source, project_root() / "data")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is left out: said when the model was trained
            index = index_dataset(source)
    except ResnetFtError as error:
        raise DatasetError(f"{error} For images elsewhere, give data_dir=.") from error
    if run.decisions:
        index = apply_decisions(index, run.decisions)
    table = index.split(split)
    table = table.iloc[np.unique(np.linspace(0, len(table) - 1, most).astype(int))]
    return [index.root / path for path in table["path"]], [*table["class_name"]]


def square(predictor: Predictor) -> Preprocessing:
    """How a predictor from a checkpoint makes the square that the model sees."""
    found = preprocessing_in(predictor.transform)
    assert found is not None  # else the checkpoint could not be loaded
    return found


def checkpoint_file(model: AnyModel) -> Path:
    """The checkpoint that a folder of a run, or a path of its own, stands for."""
    path = user_path(model)
    return path / "best.pt" if path.is_dir() else path


def _in_fresh_process(file: str | Path, folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and seconds. Raises ParameterError for a file that does not run."""
    command = [sys.executable, "-m", "resnet_ft.inference.fresh", str(user_path(file))]
    command += [f"{folder}/{name}" for name in ("images.npy", "answers.npz")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(one or "." for one in sys.path)}
    run = subprocess.run(
        [*command, str(torch.get_num_threads())],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise ParameterError(f"{file} does not run: {run.stderr.strip()[-300:]}")
    with np.load(command[-1]) as content:
        return content["arr_0"], content["arr_1"]
