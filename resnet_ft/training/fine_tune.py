"""fine_tune: the head first, on features that are computed once, then the whole network from there.

Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution",
ICLR 2022: a network whose head is right before its other layers move keeps more of what it knows.
"""

import time
from collections.abc import Callable, Sequence
from os import PathLike

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torchvision.models import ResNet

from resnet_ft import distributed, engine
from resnet_ft.data.batches import reads_files
from resnet_ft.data.mixing import MixedLoader, balanced_loader, class_weights
from resnet_ft.errors import ParameterError, TrainingError
from resnet_ft.evaluation.predictions import Predictions, tabulate
from resnet_ft.features.precompute import precompute
from resnet_ft.models.cutting import head_of
from resnet_ft.models.freezing import freeze_batchnorm, kept_trainable
from resnet_ft.training.averaging import WeightAverage, validation_scores
from resnet_ft.training.budget import TimeBudget, paced
from resnet_ft.training.callbacks import Callback, EarlyStop
from resnet_ft.training.linear_head import solve_head
from resnet_ft.training.loop import train_model
from resnet_ft.training.run import start_run
from resnet_ft.training.schedule import parameter_groups
from resnet_ft.training.state import TrainingState, trainable_parameters

_EPOCHS = 30  # of a head that has to be trained, on features


def fit_head(
    model: nn.Module,
    dataloaders: dict[str, DataLoader],
    criterion: Callable,
    *,
    class_weights: Tensor | None = None,
    cache_dir: str | PathLike | None = None,
    seed: int = 0,
) -> tuple[dict[str, float], Predictions | None]:
    """Give the model the best head for what its other layers put out, which stand still.

    A head that is one Linear layer is solved (see `solve_head`), any other trained. Returns row 0
    of a history and, of a solved head, the out-of-sample predictions of all training images, which
    the row's training columns are about. Which layers train is afterwards as before. Raises
    ParameterError where the head cannot be cut off, TrainingError where it has other classes.
    """
    started = time.perf_counter()
    loaders = {split: dataloaders[split] for split in ("train", "val")}
    with kept_trainable(model):
        for parameter in model.parameters():
            parameter.requires_grad = False
        for parameter in _head(model, loaders["train"]).parameters():
            parameter.requires_grad = True
        head, features = precompute(model, loaders, cache_dir=cache_dir)
        layers = [layer for layer in head if list(layer.parameters())]
        if len(layers) == 1 and isinstance(layers[0], nn.Linear) and layers[0].bias is not None:
            predictions = _solve(layers[0], features["train"], class_weights, seed)
            scores = (float(predictions.table["loss"].mean()), predictions.accuracy)
        else:
            predictions, scores = None, _train(head, features, criterion)
    row = {
        "epoch": 0,
        "train_loss": scores[0],
        "train_accuracy": scores[1],
        **validation_scores(head, features["val"], criterion),
        "learning_rate": float("nan"),
        "seconds": time.perf_counter() - started,
    }
    return row, predictions


def _head(model: nn.Module, loader: DataLoader) -> nn.Module:
    """The head; TrainingError, before any image is looked at, if it is made for other classes."""
    name, last = head_of(model)
    classes = loader.dataset.classes
    if last.out_features != len(classes):
        raise TrainingError(
            f"The model's last layer, {name}, has {last.out_features} outputs, but there are "
            f"{len(classes)} classes: {', '.join(classes)}. Build the model with num_classes="
            'len(dataloaders["train"].dataset.classes).'
        )
    return model.fc if isinstance(model, ResNet) else last


def _solve(
    layer: nn.Linear, loader: DataLoader, class_weights: Tensor | None, seed: int
) -> Predictions:
    """Fill the layer; what heads that were fitted to the other images say of each image."""
    features, labels = (tensor.to(engine.device()) for tensor in loader.dataset.whole())
    solved = solve_head(features, labels, layer.out_features, weights=class_weights, seed=seed)
    with torch.no_grad():
        layer.weight.copy_(solved.weight)
        layer.bias.copy_(solved.bias)
    paths = [path for path, _ in loader.dataset.samples]
    classes = loader.dataset.classes
    return tabulate(solved.probabilities.log().cpu(), labels.cpu(), classes, paths)


def _train(
    head: nn.Module, features: dict[str, DataLoader], criterion: Callable
) -> tuple[float, float]:
    """Train a head of several layers; training loss and accuracy of its best epoch."""
    optimizer = AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    _, history = train_model(head, features, criterion, optimizer, num_epochs=_EPOCHS)
    best = history.sort_values(["val_accuracy", "val_loss"], ascending=[False, True]).iloc[0]
    return float(best["train_loss"]), float(best["train_accuracy"])


class HeadFirst(Callback):
    """Begins the history with what `fit_head` gave, and takes that model for the best so far."""

    def __init__(self, row: dict[str, float], predictions: Predictions | None):
        self.row, self.predictions = row, predictions

    def on_fit_begin(self, state: TrainingState) -> None:
        row = self.row
        state.rows.append(row)
        if distributed.is_main():
            self._show(state)
        state.best.update(row)

    def _show(self, state: TrainingState) -> None:
        row, predictions = self.row, self.predictions
        seen = "cross-validated" if predictions else "train"
        print(
            f"head alone    {seen}: loss {row['train_loss']:.3f}, accuracy "
            f"{row['train_accuracy']:6.1%}   val: loss {row['val_loss']:.3f}, accuracy "
            f"{row['val_accuracy']:6.1%}   {row['seconds']:.0f} s"
        )
        if state.run is not None:
            state.run.save_history(state.history)
            if predictions is not None:
                state.run.storage.write("head_predictions.csv", predictions.save)


_LEARNING_RATE = 3e-4  # of the head, for AdamW
_FIRST_LAYER = 0.1  # of that, for the first layer
_FROM_RANDOM = 1e-3  # of all layers, where weights are random
_RECORDED = (
    *("epochs", "minutes", "learning_rate", "weight_decay", "label_smoothing", "mix", "balance"),
    *("train_batchnorm", "average_weights", "patience", "seed"),
)


def fine_tune(
    model: nn.Module,
    dataloaders: dict[str, DataLoader],
    *,
    epochs: int | None = None,
    minutes: float | None = None,
    learning_rate: float | None = None,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.0,
    mix: str | None = None,
    balance: str | None = None,
    train_batchnorm: bool = False,
    average_weights: bool = True,
    patience: int | None = None,
    seed: int = 0,
    run_dir: str | PathLike | None = None,
    resume: str | bool = "auto",
    cache_dir: str | PathLike | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[nn.Module, pd.DataFrame]:
    """Solve the head, then train all layers from there; keep the best of all on validation.

    1. The head, on what the other layers put out, computed once (see `precompute`; `cache_dir`). A
       Linear layer is solved as the convex problem that it is. This is epoch 0 of the history, with
       cross-validated training columns; `run_dir` also gets head_predictions.csv: what heads fitted
       to other images said of each training image. Networks with random weights begin with 2.
    2. What is not frozen trains with AdamW: the first layers at a tenth of `learning_rate`, with
       warm-up, cosine decay and standing BatchNorm. An average of the weights is scored as well.
    3. Of head, epochs and averages the model gets the best by validation (see `train_model`).

    `epochs`: by default 5, from random weights 25; 0 stops after the head. `minutes`, in their
    place, is what all of it may take. `mix`: "mixup", "cutmix" or "both". `balance`: "loss" or
    "sampler", for classes of unequal size. `patience`: end after so many epochs without a lower
    validation loss. How strongly images are varied is for `make_dataloaders(train=...)` to say.

    Called again with the same options and `run_dir`, a run goes on where it was, and a finished one
    returns at once; `minutes` count over all of it. Returns the model and the history as
    `train_model` does, and raises what it and `precompute` do.
    """
    chosen = {name: value for name, value in locals().items() if name in _RECORDED}
    started = time.perf_counter()
    pretrained = getattr(model, "pretrained", True)
    _check(model, dataloaders, pretrained, epochs, minutes, learning_rate, balance)
    loaders = {**dataloaders, "train": _varied(dataloaders["train"], balance, mix, seed)}
    weights = _class_weights(dataloaders["train"]) if balance else None
    criterion = nn.CrossEntropyLoss(
        weights if balance == "loss" else None, label_smoothing=label_smoothing
    ).to(engine.device())
    watchers = [WeightAverage()] if average_weights else []
    watchers += [*callbacks, *([] if patience is None else [EarlyStop(patience)])]
    budget = None if minutes is None else TimeBudget(minutes, started=started)
    goes_on = False
    if run_dir is not None and distributed.is_main():
        run_dir = start_run(run_dir, resume=resume, fine_tune=chosen)
        goes_on = run_dir.can_continue
        if goes_on and budget:
            epochs = run_dir.config["training"]["num_epochs"]
    goes_on, epochs = distributed.from_main((goes_on, epochs))
    with kept_trainable(model):
        if pretrained and not goes_on:
            head = fit_head(
                model, dataloaders, criterion, class_weights=weights, cache_dir=cache_dir, seed=seed
            )
            watchers.insert(0, HeadFirst(*head))
        if pretrained and not train_batchnorm:
            freeze_batchnorm(model)
        optimizer = _optimizer(model, learning_rate, weight_decay, pretrained)
        epochs, pacing = paced(model, loaders, optimizer, epochs=epochs, budget=budget)
        watchers += pacing
        return train_model(
            model, loaders, criterion, optimizer, None, epochs, run_dir=run_dir, callbacks=watchers
        )


def _check(
    model: nn.Module,
    dataloaders: dict[str, DataLoader],
    pretrained: bool,
    epochs: int | None,
    minutes: float | None,
    learning_rate: float | None,
    balance: str | None,
) -> None:
    """Refuse what could not work, before any work is done; other options check themselves."""
    trainable_parameters(model)
    loaders = [dataloaders.get(split) for split in ("train", "val")]
    if not all(map(reads_files, loaders)):
        raise ParameterError(
            'fine_tune takes loaders "train" and "val" that make_dataloaders makes of image files. '
            "With others, of shards too, use train_model."
        )
    if epochs is not None and minutes is not None:
        raise ParameterError("Give epochs or minutes, not both.")
    if epochs is not None and (not isinstance(epochs, int) or epochs < 0):
        raise ParameterError(f"epochs={epochs!r} should be a whole number, or None.")
    if epochs == 0 and not pretrained:
        raise ParameterError("epochs=0 stops after the head, which random weights have no use for.")
    if learning_rate is not None and not learning_rate > 0:
        raise ParameterError(f"learning_rate={learning_rate} should be positive, or None.")
    if balance not in (None, "loss", "sampler"):
        raise ParameterError(f'balance={balance!r} is unknown. Choose None, "loss" or "sampler".')


def _class_weights(loader: DataLoader) -> Tensor:
    return class_weights(loader.dataset.labels, len(loader.dataset.classes))


def _optimizer(
    model: nn.Module, learning_rate: float | None, weight_decay: float, pretrained: bool
) -> AdamW:
    """Layers that know something already move less, those near the images least."""
    usual = _LEARNING_RATE if pretrained else _FROM_RANDOM
    rate = usual if learning_rate is None else learning_rate
    first_layer = _FIRST_LAYER if pretrained else 1.0
    groups = parameter_groups(model, rate, weight_decay=weight_decay, first_layer=first_layer)
    return AdamW(groups)


def _varied(loader: DataLoader, balance: str | None, mix: str | None, seed: int) -> DataLoader:
    """The training loader with what changes its batches."""
    loader = balanced_loader(loader) if balance == "sampler" else loader
    classes = len(loader.dataset.classes)
    return loader if mix is None else MixedLoader(loader, classes, mix, seed=seed)
