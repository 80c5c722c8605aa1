"""What a model predicts for every image of a data loader, as a table."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from resnet_ft import distributed, engine
from resnet_ft.data.batches import EpochBatchSampler, device_batches
from resnet_ft.errors import DatasetError, ParameterError
from resnet_ft.files import atomic_write, user_path
from resnet_ft.models.check import check_model
from resnet_ft.models.checkpoint import tensors_digest
from resnet_ft.models.cutting import WithFeatures
from resnet_ft.models.freezing import evaluation_mode
from resnet_ft.notebook import progress_bar
from resnet_ft.reading import read_table, reading, write_table

_ON_DEVICE = 2**26  # bytes of logits that stay on the device until they are copied together
_ARRAYS = ".safetensors"
_MOST_IN_FILE = 2**26  # bytes of logits and features
_COLUMNS = ("path", "label", "predicted", "confidence", "loss")


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for N images of C classes.

    `table` has a row per image: `path`, `label`, `predicted` (class names), `confidence` (the
    probability of the predicted class) and `loss` (cross-entropy in nats: 0.69 for a coin toss).
    `probabilities` has shape (N, C), its columns in the order of `classes`; so have `logits`, where
    they are known. `features` (N, D), where they were asked for, is what the last layer saw, in
    half precision. `weights` is a digest of the model's weights.
    """

    table: pd.DataFrame
    probabilities: np.ndarray
    classes: list[str]
    logits: np.ndarray | None = None
    features: np.ndarray | None = None
    weights: str = ""

    @property
    def accuracy(self) -> float:
        """The share of images whose predicted class is the true one."""
        return float((self.table["predicted"] == self.table["label"]).mean())

    @property
    def labels(self) -> np.ndarray:
        """The positions (N,) of the true classes in `classes`."""
        positions = {name: position for position, name in enumerate(self.classes)}
        return self.table["label"].map(positions).to_numpy()

    def calibrated(self, temperature: float) -> "Predictions":
        """The same images, their logits divided by a temperature; `logits` stay as they are."""
        if self.logits is None:
            raise ParameterError("These predictions have no logits. Evaluate the model again.")
        logs = log_softmax(self.logits.astype(np.float64) / temperature, axis=1)
        losses = -logs[np.arange(len(logs)), self.labels]
        table = self.table.assign(confidence=np.exp(logs.max(axis=1)), loss=losses)
        return replace(self, table=table, probabilities=np.exp(logs))

    def save(self, path: str | Path) -> Path:
        """Write the table, with a column of probabilities for each class, as CSV.

        Logits and features go into a .safetensors file beside it, if they take at most 64 MiB.
        """
        columns = [f"p({name})" for name in self.classes]
        probabilities = pd.DataFrame(self.probabilities, columns=columns)
        path = user_path(path)
        beside, arrays = path.with_suffix(_ARRAYS), dict[str, np.ndarray]()
        for name, array in (("logits", self.logits), ("features", self.features)):
            if array is None:
                continue
            if sum(one.nbytes for one in arrays.values()) + array.nbytes <= _MOST_IN_FILE:
                arrays[name] = array
            else:
                print(f"{beside.name} does without the {name}: they would take it above 64 MiB.")
        with atomic_write(path) as temporary:
            write_table(pd.concat([self.table, probabilities], axis=1), temporary)
        if arrays or beside.exists():
            about = {"rows": str(len(self.table)), "weights": self.weights}
            with atomic_write(beside) as temporary:
                save_file(arrays, temporary, {**about, "table": _digest(path)})
        return path


def load_predictions(path: str | Path) -> Predictions:
    """Read what `Predictions.save` wrote. Raises DatasetError for anything else.

    Logits and features come from the file beside it, if that is there and was written with it.
    """
    remedy = "Evaluate the model again (notebook 04); fit_head writes head_predictions.csv."
    with reading(path, DatasetError, remedy):
        table = read_table(path, _COLUMNS, is_number=_is_number)
        columns = [column for column in table if column.startswith("p(")]
        probabilities = table[columns].to_numpy(np.float32)
        classes = [column[2:-1] for column in columns]
        unknown = {*table["label"], *table["predicted"]}.difference(classes)
        if not len(table) or unknown:
            raise ValueError(f"it has no rows, or classes without a column: {sorted(unknown)[:3]}")
        if not ((probabilities >= 0) & (probabilities <= 1)).all() or table["loss"].isna().any():
            raise ValueError("it has probabilities that are empty, below 0 or above 1")
        arrays, weights = _read_arrays(user_path(path))
    return Predictions(
        table.drop(columns=columns),
        probabilities,
        classes,
        arrays.get("logits"),
        arrays.get("features"),
        weights,
    )


def _read_arrays(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Logits and features of the images in a table, and the digest of the model's weights."""
    beside = path.with_suffix(_ARRAYS)
    if not beside.exists():
        return {}, ""
    with safe_open(beside, "np") as file:
        about = file.metadata()
        if about["table"] != _digest(path):
            return {}, ""
        return {name: file.get_tensor(name) for name in file.keys()}, about["weights"]  # noqa: SIM118


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _is_number(column: str) -> bool:
    return column.startswith("p(") or column in ("confidence", "loss")


def evaluate(
    model: nn.Module, dataloader: DataLoader, *, features: bool = False, calibrated: bool = False
) -> Predictions:
    """What `model` predicts for every image that `dataloader` delivers, in its order.

    Batches are (images (N, 3, H, W), integer labels (N,)). The model moves to the device and keeps
    its mode. Each of several processes has to call it and gets the complete table. `path` is known
    where the dataset has `samples` in that order (see `unshuffled`). With `features`, the same pass
    keeps what the last layer saw. `calibrated` divides the logits by the temperature in the model's
    checkpoint (see `calibrate`). Raises ParameterError where that has none for these weights.
    """
    check_model(model, dataloader)
    weights = tensors_digest(model.state_dict())[:16]
    calibration: Any = getattr(model, "calibration", None)
    if calibrated and not (calibration and calibration["weights"] == weights):
        raise ParameterError(
            "The model has no temperature for its weights. Call calibrate(run), and load the "
            "checkpoint after that."
        )
    net = WithFeatures(model) if features else model
    outputs, labels = predict_logits(net, dataloader)
    num_logits = getattr(net, "num_logits", outputs.shape[1])
    logits, seen = outputs[:, :num_logits], outputs[:, num_logits:]
    names = class_names(dataloader)
    # What the outputs mean: the model's own classes, else those of the data set, else numbers.
    classes = getattr(model, "classes", None) or names or [str(i) for i in range(num_logits)]
    if len(classes) != num_logits:
        raise ParameterError(
            f"The model has {num_logits} outputs for {len(classes)} classes. "
            f"Build it with build_model(arch, num_classes={len(classes)})."
        )
    names = names or classes
    if unknown := sorted(set(names) - set(classes)):
        raise DatasetError(
            f"The data set has classes that the model was not trained on: {', '.join(unknown)}. "
            f"It knows {', '.join(classes)}. Evaluate on data of these classes, or train again."
        )
    labels = torch.tensor([classes.index(name) for name in names])[labels]
    samples, sampler = getattr(dataloader.dataset, "samples", ()), dataloader.batch_sampler
    if isinstance(sampler, EpochBatchSampler):
        in_order = not sampler.shuffle
    else:
        in_order = isinstance(getattr(sampler, "sampler", None), SequentialSampler)
    known = in_order and len(samples) == len(labels)
    paths = [str(path) for path, _ in samples] if known else [None] * len(labels)
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    found = tabulate(logits.softmax(dim=1), losses, labels, classes, paths)
    fits_half = features and seen.abs().max() <= torch.finfo(torch.half).max
    found = replace(
        found,
        logits=logits.numpy().copy(),
        features=(seen.half() if fits_half else seen.clone()).numpy() if features else None,
        weights=weights,
    )
    return found.calibrated(calibration["temperature"]) if calibrated else found


def predict_logits(model: nn.Module, dataloader: DataLoader) -> tuple[Tensor, Tensor]:
    """Outputs (N, C) in full precision and labels (N,), both on the CPU.

    Where a batch does not fit into memory, it goes through the model in parts.
    """
    model.to(engine.device())
    net, logits, labels = engine.InParts(model), list[Tensor](), list[Tensor]()
    here, on_device = 0, 0  # of the logits: how many batches, how many bytes
    batches, total = device_batches(dataloader), length_hint(dataloader) or None
    with evaluation_mode(model), torch.inference_mode(), engine.accelerator().autocast():
        for images, batch_labels in progress_bar(batches, "Evaluating", total, unit="batch"):
            logits.append(net(images).float())
            labels.append(batch_labels)
            on_device += logits[-1].nbytes
            if on_device > _ON_DEVICE:  # seldom, since it waits for the device
                logits[here:] = [torch.cat(logits[here:]).cpu()]
                here, on_device = len(logits), 0
        logits[here:] = [torch.cat(logits[here:]).cpu()] if logits[here:] else []
    return _of_all(dataloader, torch.cat(logits)), _of_all(dataloader, torch.cat(labels))


def _of_all(dataloader: DataLoader, rows: Tensor) -> Tensor:
    """The rows of all processes, where each has its share, in the order of the loader."""
    sampler = dataloader.batch_sampler
    if distributed.count() == 1 or not isinstance(sampler, EpochBatchSampler):
        return rows
    gathered = torch.cat(distributed.gathered(rows))
    ordered = torch.empty_like(gathered)
    ordered[torch.cat(distributed.gathered(sampler.places()))] = gathered
    return ordered


def tabulate(
    probabilities: Tensor,
    losses: Tensor,
    labels: Tensor,
    classes: list[str],
    paths: Sequence[str | None],
) -> Predictions:
    """Predictions from probabilities (N, C), and losses and labels (N,)."""
    confidence, predicted = probabilities.max(dim=1)
    table = pd.DataFrame(
        {
            "path": paths,
            "label": [classes[label] for label in labels.tolist()],
            "predicted": [classes[label] for label in predicted.tolist()],
            "confidence": confidence.float().numpy(),
            "loss": losses.numpy(),
        }
    )
    return Predictions(table, probabilities.numpy(), classes)


def check_paths(table: pd.DataFrame) -> pd.DataFrame:
    """The same table of predictions. Raises ParameterError where it does not know its images."""
    if table["path"].isin(["", None]).any():
        raise ParameterError(
            "These predictions do not know the paths of their images. Evaluate with a loader that "
            'does not shuffle and has a dataset with samples, such as dataloaders["val"].'
        )
    return table


def class_names(dataloader: DataLoader) -> list[str] | None:
    """The names of the classes, where the dataset knows them."""
    return getattr(dataloader.dataset, "classes", None)
