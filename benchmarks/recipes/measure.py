"""One run of `fine_tune`: what head, end, averages and all between them are worth, on val and test.

Losses are plain cross-entropy in nats, whatever the criterion was. Rules of choice can be compared
afterwards: the test scores of everything that a rule might choose are in the row.
"""

import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from finetuning import ARCH
from finetuning.resnet_ft import PREPROCESSING
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from recipes.variants import Variant
from resnet_ft import (
    Callback,
    TrainingState,
    build_model,
    eval_transform,
    fine_tune,
    make_dataloaders,
    train_transform,
)
from resnet_ft.training.averaging import WeightAverage, validation_scores

Weights = dict[str, Tensor]
Scores = list[float]  # loss, accuracy

_SHARES = (0.25, 0.5, 0.75)  # of the way from the head's weights to others


def measure(
    folder: Path,
    variant: Variant,
    *,
    epochs: int,
    seed: int,
    scratch: Path,
    weights: Path | None,
    known: dict[str, dict[str, Scores]],
) -> dict[str, object]:
    """Train on a draw's folder; with `weights` EfficientNet-Lite0, else ResNet-18 from scratch.

    `known` keeps the scores of the solved head, which all variants of a draw share.
    """
    dataloaders = make_dataloaders(
        folder,
        train=train_transform(PREPROCESSING, strength=variant.strength),
        val=eval_transform(PREPROCESSING),
        num_workers=0,
        cache_dir=scratch / "images",
        seed=seed,
    )
    num_classes = len(dataloaders["train"].dataset.classes)
    torch.manual_seed(seed)
    if weights is None:
        model = build_model("resnet18", num_classes, weights=None)
    else:
        model = build_model(f"timm/{ARCH}", num_classes, weights=weights)
    recorder = _Recorder(has_head=weights is not None)
    started = time.perf_counter()
    model, history = fine_tune(
        model,
        {split: dataloaders[split] for split in ("train", "val")},
        epochs=epochs,
        seed=seed,
        cache_dir=scratch / "features",
        callbacks=[*variant.callbacks, recorder],
        **variant.options,
    )
    seconds = time.perf_counter() - started - recorder.seconds
    candidates = recorder.candidates(epochs)
    row = {
        "train": len(dataloaders["train"].dataset),
        "val": len(dataloaders["val"].dataset),
        "test": len(dataloaders["test"].dataset),
        "classes": num_classes,
        "seconds": round(seconds, 2),
        "chosen": recorder.chosen,
        "lowest_loss": recorder.lowest,
        "epochs": recorder.rows,
    }
    if weights is not None:
        row["head_seconds"] = round(float(history["seconds"].iloc[0]), 2)
    for split in ("val", "test"):
        scored = row[split] = {}
        for name, one in candidates.items():
            if name == "head" and split in known:
                scored[name] = known[split][name]
            elif twins := [other for other in scored if _are_equal(candidates[other], one)]:
                scored[name] = scored[twins[0]]
            else:
                model.load_state_dict(one)
                scored[name] = _scores(model, dataloaders[split])
    if weights is not None:
        known |= {split: {"head": row[split]["head"]} for split in ("val", "test")}
    return row


class _Recorder(Callback):
    """Plain scores of every epoch, and the weights that a rule of choice might take."""

    def __init__(self, *, has_head: bool):
        self.has_head, self.rows, self.seconds = has_head, [], 0.0
        self._kept: dict[str, Weights] = {}
        self.lowest, self._lowest_loss, self._lowest = "", math.inf, {}
        self.chosen, self._chosen_rank, self._chosen = "", (-1.0, 0.0), {}  # as train_model does

    def on_fit_begin(self, state: TrainingState) -> None:
        began = time.perf_counter()
        if self.has_head:
            self._kept["head"] = _copy(state.model)
            loss = _scores(state.model, state.dataloaders["val"])[0]
            self.lowest, self._lowest_loss, self._lowest = "head", loss, self._kept["head"]
            self.chosen, self._chosen = "head", self._kept["head"]
            self._chosen_rank = _rank(state.rows[0])
        self._second_half = AveragedModel(state.model)
        self.seconds += time.perf_counter() - began

    def on_phase_begin(self, state: TrainingState) -> None:
        self._loss = 0.0

    def on_step_end(self, state: TrainingState) -> None:
        if state.phase == "val":
            output = state.output
            loss = nn.functional.cross_entropy(output.logits, output.labels, reduction="sum")
            self._loss += loss.item()
        else:
            steps = state.steps_per_epoch["train"]
            if (state.epoch - 1) * steps + state.step > state.num_epochs * steps / 2:
                self._second_half.update_parameters(state.model)

    def on_epoch_end(self, state: TrainingState) -> None:
        began = time.perf_counter()
        average = _average_of(state)
        loss = self._loss / len(state.dataloaders["val"].dataset)
        averaged = _scores(average, state.dataloaders["val"])
        row = [round(loss, 4), round(state.row["val_accuracy"], 4), *averaged]
        self.rows.append(row)
        for name, one, of_it in (
            (f"epoch {state.epoch}", state.model, loss),
            (f"average {state.epoch}", average, averaged[0]),
        ):
            if of_it < self._lowest_loss:
                self.lowest, self._lowest_loss, self._lowest = name, of_it, _copy(one)
        for name, one, rank in (
            (f"epoch {state.epoch}", state.model, _rank(state.row)),
            (f"average {state.epoch}", average, _rank(state.row, "ema_")),
        ):
            if rank > self._chosen_rank:
                self.chosen, self._chosen_rank, self._chosen = name, rank, _copy(one)
        if state.epoch == state.num_epochs:
            self._kept |= {
                f"epoch {state.epoch}": _copy(state.model),
                f"average {state.epoch}": _copy(average),
                "second half": _copy(self._second_half.module),
            }
        self.seconds += time.perf_counter() - began

    def candidates(self, epochs: int) -> dict[str, Weights]:
        """The weights by name: of the head, the end, averages, and interpolations from the head."""
        found = dict(self._kept)
        if self.has_head:
            head = found["head"]
            for share in _SHARES:
                found[f"{share} end"] = _between(head, found[f"epoch {epochs}"], share)
            found["0.5 average"] = _between(head, found[f"average {epochs}"], 0.5)
        return found | {self.lowest: self._lowest, self.chosen: self._chosen}


def _average_of(state: TrainingState) -> nn.Module:
    (average,) = (one for one in state.callbacks if isinstance(one, WeightAverage))
    return average.average


def _copy(model: nn.Module) -> Weights:
    return {name: one.detach().clone() for name, one in model.state_dict().items()}


def _between(start: Weights, end: Weights, share: float) -> Weights:
    """Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022."""
    return {
        name: torch.lerp(one, end[name], share) if one.is_floating_point() else end[name]
        for name, one in start.items()
    }


def _are_equal(one: Weights, other: Weights) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _scores(model: nn.Module, loader: DataLoader) -> Scores:
    scores = validation_scores(model, loader, nn.CrossEntropyLoss())
    return [round(scores["val_loss"], 4), round(scores["val_accuracy"], 4)]


def _rank(row: Mapping[str, float], prefix: str = "") -> tuple[float, float]:
    """What `train_model` ranks by: the highest validation accuracy, ties by loss."""
    return row[f"{prefix}val_accuracy"], -row[f"{prefix}val_loss"]
