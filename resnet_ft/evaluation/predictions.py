"""What a model predicts for every image of a data loader, as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from resnet_ft import distributed, engine
from resnet_ft.data.batches import EpochBatchSampler, device_batches
from resnet_ft.errors import DatasetError, ParameterError
from resnet_ft.files import atomic_write, user_path
from resnet_ft.models.check import check_model
from resnet_ft.models.freezing import evaluation_mode
from resnet_ft.notebook import progress_bar
from resnet_ft.reading import read_table, reading, write_table

_ON_DEVICE = 2**26  # bytes of logits that stay on the device until they are copied together
_COLUMNS = ("path", "label", "predicted", "confidence", "loss")


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for N images of C classes.

    `table` has a row per image: `path`, `label`, `predicted` (class names), `confidence` (the
    probability of the predicted class) and `loss` (cross-entropy in nats: 0.69 for a coin toss).
    `probabilities` has shape (N, C), its columns in the order of `classes`.
    """

    table: pd.DataFrame
    probabilities: np.ndarray
    classes: list[str]

    @property
    def accuracy(self) -> float:
        """The share of images whose predicted class is the true one."""
        return float((self.table["predicted"] == self.table["label"]).mean())

    def save(self, path: str | Path) -> Path:
        """Write the table, with a column of probabilities for each class, as CSV."""
        columns = [f"p({name})" for name in self.classes]
        probabilities = pd.DataFrame(self.probabilities, columns=columns)
        with atomic_write(path) as temporary:
            write_table(pd.concat([self.table, probabilities], axis=1), temporary)
        return user_path(path)


def load_predictions(path: str | Path) -> Predictions:
    """Read what `Predictions.save` wrote. Raises DatasetError for anything else."""
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
    return Predictions(table.drop(columns=columns), probabilities, classes)


def _is_number(column: str) -> bool:
    return column.startswith("p(") or column in ("confidence", "loss")


def evaluate(model: nn.Module, dataloader: DataLoader) -> Predictions:
    """What `model` predicts for every image that `dataloader` delivers, in its order.

    Batches are (images (N, 3, H, W), integer labels (N,)). The model moves to the device and keeps
    its mode. Each of several processes has to call it and gets the complete table. `path` is known
    where the dataset has `samples` in that order.
    """
    check_model(model, dataloader)
    logits, labels = predict_logits(model, dataloader)
    num_logits, names = logits.shape[1], class_names(dataloader)
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
    return tabulate(logits.softmax(dim=1), losses, labels, classes, paths)


def predict_logits(model: nn.Module, dataloader: DataLoader) -> tuple[Tensor, Tensor]:
    """Logits (N, C) in full precision and labels (N,), both on the CPU.

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


def class_names(dataloader: DataLoader) -> list[str] | None:
    """The names of the classes, where the dataset knows them."""
    return getattr(dataloader.dataset, "classes", None)
