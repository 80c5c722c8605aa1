"""Exported files answer in processes of their own, and are compared with their checkpoint."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from torchvision.transforms import v2

from resnet_ft.data.cache import DecodedImages
from resnet_ft.data.decisions import apply_decisions
from resnet_ft.data.index import index_dataset
from resnet_ft.data.transforms import Preprocessing, prepare, preprocessing_in
from resnet_ft.errors import DatasetError, ImageError, ParameterError
from resnet_ft.files import user_path
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

    `model` is the folder of a run or a checkpoint file; `exports` names the files. Each is loaded
    in a fresh process and gets the same images, one at a time: up to 300 of the run's validation
    images, or of those in `data_dir`. Where none are found, it is noise, and accuracy is NaN;
    `attrs["images"]` says so. Columns: `agreement` (share of images with the checkpoint's class),
    `largest_difference` (of a probability), `accuracy`, `megabytes`, and `milliseconds` (the median
    per image, on as many threads as torch uses).
    """
    predictor = Predictor.load(os.fspath(model))
    try:
        images, labels = photographs(model, predictor, "val", _MOST, data_dir)
        described = f"{len(images)} validation images"
    except DatasetError:
        if data_dir is not None:
            raise
        size = square(predictor).image_size
        noise = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        noise = torch.nn.functional.interpolate(noise, size=(size, size), mode="bilinear")
        images, labels = (255 * noise).byte().numpy(), None
        described = f"{len(images)} images of noise (no data_dir was given)"
    found = {"checkpoint": _of_checkpoint(predictor, images)}
    with tempfile.TemporaryDirectory(prefix="resnet_ft-") as folder:
        np.save(Path(folder, "images.npy"), images)
        found |= {name: _in_fresh_process(exports[name], folder) for name in exports}
    files, expected, rows = (
        {"checkpoint": checkpoint_file(model), **exports},
        found["checkpoint"],
        {},
    )
    for name, (answers, seconds) in found.items():
        chosen = answers.argmax(axis=1)
        rows[name] = {
            "agreement": (chosen == expected[0].argmax(axis=1)).mean(),
            "largest_difference": np.abs(answers - expected[0]).max(),
            "accuracy": np.nan if labels is None else (chosen == labels).mean(),
            "megabytes": user_path(files[name]).stat().st_size / 1e6,
            "milliseconds": 1000 * np.median(seconds),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.attrs["images"] = described
    return table


def photographs(
    model: AnyModel, predictor: Predictor, split: str, most: int, data_dir: str | Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Images of a split, evenly spread, as bytes (N, 3, H, W) for the model, and their labels (N,).

    Raises DatasetError where the run's `data_source` is not found and no `data_dir` is given.
    """
    run, source = Run(checkpoint_file(model).parent), data_dir
    if source is None and (run.folder / "config.json").exists():
        source = str(run.config.get("data_source") or "") or None
    try:
        if source is None:
            raise DatasetError(f"{run.folder} does not say where its images are.")
        index = index_dataset(stage_dataset(source, project_root() / "data"))
    except DatasetError as error:
        raise DatasetError(f"{error} To use other images, give their folder: data_dir=.") from error
    if run.decisions and data_dir is None:
        index = apply_decisions(index, run.decisions)
    table, wanted = index.split(split), square(predictor)
    table = table.iloc[np.unique(np.linspace(0, len(table) - 1, most).astype(int))]
    decoded = DecodedImages(
        [index.root / path for path in table["path"]],
        wanted.side,
        interpolation=wanted.interpolation,
        ranges=predictor.ranges,
    )
    steps: Any = predictor.transform
    cut = v2.Compose(steps.transforms[:-2])  # the rest is in the export
    numbers = {name: number for number, name in enumerate(predictor.classes)}
    images, labels = [], []
    for row, name in enumerate(table["class_name"]):
        with suppress(ImageError):
            images.append(np.asarray(prepare(decoded[row], cut)))
            labels.append(numbers.get(name, -1))
    return np.stack(images), np.array(labels)


def square(predictor: Predictor) -> Preprocessing:
    """How a predictor from a checkpoint makes the square that a model sees."""
    found = preprocessing_in(predictor.transform)
    assert found is not None  # else the checkpoint could not be loaded
    return found


def checkpoint_file(model: AnyModel) -> Path:
    """The checkpoint that is meant by the folder of a run, or by itself."""
    path = user_path(model)
    return path / "best.pt" if path.is_dir() else path


@torch.inference_mode()
def _of_checkpoint(predictor: Predictor, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, C), and the seconds that each image took, on the processor."""
    steps: Any = predictor.transform
    model, transform = predictor.model.cpu().float(), v2.Compose(steps.transforms[-2:])
    found, times = [], [perf_counter()]
    for image in torch.from_numpy(images):
        logits = model(transform(image)[None])
        found.append((logits / predictor.calibration.temperature).softmax(dim=1).numpy())
        times.append(perf_counter())
    return np.concatenate(found), np.diff(times)


def _in_fresh_process(file: str | Path, folder: str) -> tuple[np.ndarray, np.ndarray]:
    answers = Path(folder, "answers.npz")
    command = [sys.executable, "-m", "resnet_ft.inference.fresh", str(user_path(file))]
    command += [f"{folder}/images.npy", str(answers), str(torch.get_num_threads())]
    paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    run = subprocess.run(
        command, env={**os.environ, **paths}, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise ParameterError(f"{file} does not run: {run.stderr.strip()[-500:]}")
    with np.load(answers) as content:
        return content["probabilities"], content["seconds"]
