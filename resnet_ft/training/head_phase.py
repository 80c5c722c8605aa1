"""The head of a network, trained on its own: one pass over the images, then a matter of seconds."""

import time
from collections.abc import Callable
from os import PathLike

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torchvision.models import ResNet

from resnet_ft import engine, processes
from resnet_ft.errors import TrainingError
from resnet_ft.evaluation.predictions import Predictions, tabulate
from resnet_ft.features.precompute import precompute
from resnet_ft.models.cutting import head_of
from resnet_ft.models.freezing import kept_trainable
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.head import solve_head
from resnet_ft.training.loop import train_model
from resnet_ft.training.state import TrainingState
from resnet_ft.training.validation import validation_scores

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
        if processes.is_main():
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
