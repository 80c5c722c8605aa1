"""The head of a network, trained on its own: one pass over the images, then a matter of seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torchvision.models import ResNet

from resnet_ft import engine
from resnet_ft.evaluation.predictions import Predictions, predict_logits, tabulate
from resnet_ft.features.precompute import precompute
from resnet_ft.models.cutting import head_of
from resnet_ft.models.freezing import freeze, kept_trainable
from resnet_ft.training.head import solve_head
from resnet_ft.training.loop import train_model

_EPOCHS = 30  # of a head that has to be trained, on features


@dataclass(frozen=True)
class HeadResult:
    """What the head alone can do.

    `row` is row 0 of a history; of a head that was solved its training columns are cross-validated,
    and `predictions` are the out-of-sample ones of all training images.
    """

    row: dict[str, float]
    predictions: Predictions | None


def fit_head(
    model: nn.Module,
    dataloaders: dict[str, DataLoader],
    criterion: Callable,
    *,
    class_weights: Tensor | None = None,
    cache_dir: str | PathLike | None = None,
    seed: int = 0,
) -> HeadResult:
    """Give the model the best head for what its other layers put out, which stand still.

    A head that is one Linear layer is solved (see `solve_head`), any other trained. Which layers
    train is afterwards as before. Raises ParameterError where the head cannot be cut off.
    """
    started = time.perf_counter()
    loaders = {split: dataloaders[split] for split in ("train", "val")}
    with kept_trainable(model):
        freeze(model, until=_head_name(model))
        head, features = precompute(model, loaders, cache_dir=cache_dir)
        layers = [layer for layer in head if list(layer.parameters())]
        if len(layers) == 1 and isinstance(layers[0], nn.Linear) and layers[0].bias is not None:
            predictions = _solve(layers[0], features["train"], class_weights, seed)
            scores = (float(predictions.table["loss"].mean()), predictions.accuracy)
        else:
            predictions, scores = None, _train(head, features, criterion)
    logits, labels = predict_logits(head, features["val"])
    row = {
        "epoch": 0,
        "train_loss": scores[0],
        "train_accuracy": scores[1],
        "val_loss": criterion(logits.to(engine.device()), labels.to(engine.device())).item(),
        "val_accuracy": (logits.argmax(dim=1) == labels).float().mean().item(),
        "learning_rate": float("nan"),
        "seconds": time.perf_counter() - started,
    }
    return HeadResult(row, predictions)


def _head_name(model: nn.Module) -> str:
    return "fc" if isinstance(model, ResNet) else head_of(model)[0]


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
