"""fit_head: the best head for what the other layers put out, which are frozen meanwhile.

A head that is one Linear layer is multinomial logistic regression: a convex problem, solved as one.
Cross-validation chooses its regularisation, and gives probabilities for every image by a head that
has not learned from it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, AdamW
from torch.utils.data import DataLoader

from resnet_ft import distributed, engine
from resnet_ft.errors import TrainingError
from resnet_ft.evaluation.predictions import Predictions, tabulate
from resnet_ft.features.precompute import precompute
from resnet_ft.models.build import head_of, num_outputs
from resnet_ft.models.freezing import kept_trainable
from resnet_ft.training.averaging import validation_scores
from resnet_ft.training.loop import train_model
from resnet_ft.training.run import Run
from resnet_ft.training.state import Row

_EPOCHS = 30  # of a head that has to be trained, on features
# The weight of the squared norm beside the mean loss, for features of mean squared length 1.
_PENALTIES = [10 ** (-power / 2) for power in range(2, 13)]
_FOLDS = 5
_ENOUGH = 10_000  # images to choose the penalty from


@dataclass(frozen=True)
class Head:
    """What `fit_head` measured: row 0 of a history, and the predictions of a solved head.

    `predictions` are out of sample: those of an image come from a head that was fitted to other
    images; the row's training columns score them. None for a head that had to be trained.
    """

    row: Row
    predictions: Predictions | None


def fit_head(
    model: nn.Module,
    dataloaders: Mapping[str, DataLoader],
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    class_weights: Tensor | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    run: Run | None = None,
) -> Head:
    """Give the model the best head for what its other layers put out.

    Each image goes through those layers once (see `precompute`; `cache_dir`). A head that is one
    Linear layer is then solved by L-BFGS, its regularisation chosen by five-fold cross-validation;
    any other head is trained. `class_weights` (C,) are those of the solved head's loss, `criterion`
    scores the validation images. A `run` gets the predictions as head_predictions.csv, in which
    `find_label_errors` looks for wrong labels. The same layers are frozen afterwards as before.
    Raises ParameterError where the head cannot be cut off, TrainingError for a wrong class count.
    """
    started = time.perf_counter()
    criterion = criterion or nn.CrossEntropyLoss()
    if isinstance(criterion, nn.Module):
        criterion.to(engine.device())
    train: Any = dataloaders["train"].dataset
    (name, head), outputs, classes = head_of(model), num_outputs(model), train.classes
    if outputs != len(classes):  # refused before any image is read
        raise TrainingError(
            f"The model's last layer, {name}, has {outputs} outputs, but there are "
            f"{len(classes)} classes: {', '.join(classes)}. Build the model with num_classes="
            'len(dataloaders["train"].dataset.classes).'
        )
    with kept_trainable(model):
        model.requires_grad_(False)
        head.requires_grad_(True)
        loaders = {split: dataloaders[split] for split in ("train", "val")}
        rest, features = precompute(model, loaders, cache_dir=cache_dir)
        layers = [layer for layer in rest.children() if list(layer.parameters())]
        if len(layers) == 1 and isinstance(layers[0], nn.Linear) and layers[0].bias is not None:
            predictions = _solve_layer(layers[0], features["train"], class_weights, seed)
            loss, accuracy = predictions.table["loss"].mean(), predictions.accuracy
        else:
            predictions, optimizer = None, AdamW(rest.parameters(), lr=1e-3, weight_decay=0.01)
            _, history = train_model(rest, features, criterion, optimizer, num_epochs=_EPOCHS)
            by_rank = history.sort_values(["val_accuracy", "val_loss"], ascending=[False, True])
            loss, accuracy = by_rank.iloc[0][["train_loss", "train_accuracy"]]
        validation = validation_scores(rest, features["val"], criterion)
    row = {
        "epoch": 0,
        "train_loss": float(loss),
        "train_accuracy": float(accuracy),
        **validation,
        "learning_rate": float("nan"),
        "seconds": time.perf_counter() - started,
    }
    if distributed.is_main():
        seen = "cross-validated" if predictions else "train"
        print(
            f"head alone  loss {row['train_loss']:.3f} ({seen}), val {row['val_loss']:.3f}"
            f"  accuracy {row['val_accuracy']:.1%}  {row['seconds']:.0f} s"
        )
    if run is not None and predictions is not None:
        run.write("head_predictions.csv", predictions.save)
    return Head(row, predictions)


def _solve_layer(
    layer: nn.Linear, loader: DataLoader, class_weights: Tensor | None, seed: int
) -> Predictions:
    """Fill the layer; return what heads that were fitted to other images say of each image."""
    dataset: Any = loader.dataset
    features, labels = (tensor.to(engine.device()) for tensor in dataset.first_view())
    solved = solve_head(features, labels, layer.out_features, weights=class_weights, seed=seed)
    with torch.no_grad():
        layer.weight.copy_(solved.weight)
        layer.bias.copy_(solved.bias)
    paths = [path for path, _ in dataset.samples]
    return tabulate(solved.probabilities.log().cpu(), labels.cpu(), dataset.classes, paths)


class _Solution(NamedTuple):
    weight: Tensor  # (C, D): the logits are features @ weight.T + bias
    bias: Tensor  # (C,)
    penalty: float
    probabilities: Tensor  # (N, C), of each image by a head that was fitted to the folds without it


def solve_head(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    weights: Tensor | None = None,
    seed: int = 0,
) -> _Solution:
    """The head for features (N, D) and labels (N,), by L-BFGS and five-fold cross-validation.

    The penalty is the one with the lowest out-of-sample loss; `seed` shuffles the folds. `weights`
    (C,) are class weights, as `nn.CrossEntropyLoss` takes them.
    """
    centre = features.mean(dim=0)
    length = (features - centre).square().sum(dim=1).mean().sqrt().clamp(min=1e-12)
    inputs = (features - centre) / length
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    folds = _folds(labels, order.to(labels.device))
    loss = nn.CrossEntropyLoss(None if weights is None else weights.to(features.device))
    fit = partial(_fit, num_classes=num_classes, loss=loss)

    # Penalties from the strongest on, until the out-of-sample loss rises.
    x, y, fold_of = (tensor[order[:_ENOUGH]] for tensor in (inputs, labels, folds))
    fitted: list[tuple[Tensor, Tensor] | None] = [None] * _FOLDS
    losses: list[float] = []
    for penalty in _PENALTIES:
        losses.append(0.0)
        for fold in range(_FOLDS):
            held_out = fold_of == fold
            if held_out.any():  # there may be fewer images than folds
                start = fitted[fold]
                weight, bias = fitted[fold] = fit(x[~held_out], y[~held_out], penalty, start=start)
                mean = loss(x[held_out] @ weight.T + bias, y[held_out]).item()
                losses[-1] += mean * int(held_out.sum())
        if losses[-1] > 1.02 * min(losses):
            break
    penalty = _PENALTIES[losses.index(min(losses))]

    probabilities = torch.empty(len(labels), num_classes, device=features.device)
    for fold in range(_FOLDS):
        held_out = folds == fold
        weight, bias = fit(inputs[~held_out], labels[~held_out], penalty)
        probabilities[held_out] = (inputs[held_out] @ weight.T + bias).softmax(dim=1)
    weight, bias = fit(inputs, labels, penalty)
    weight = weight / length
    return _Solution(weight, bias - weight @ centre, penalty, probabilities)


def _folds(labels: Tensor, order: Tensor) -> Tensor:
    """A fold for each sample, with each class spread evenly over them."""
    by_class = order[labels[order].argsort(stable=True)]
    folds = torch.empty_like(labels)
    folds[by_class] = torch.arange(len(labels), device=labels.device) % _FOLDS
    return folds


def _fit(
    inputs: Tensor,
    labels: Tensor,
    penalty: float,
    *,
    num_classes: int,
    loss: nn.Module,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the lowest loss, searched from zeros or from a `start` nearby."""
    zeros = (inputs.new_zeros(num_classes, inputs.shape[1]), inputs.new_zeros(num_classes))
    weight, bias = (tensor.clone().requires_grad_() for tensor in start or zeros)
    optimizer = LBFGS(
        [weight, bias],
        max_iter=200,
        history_size=10,
        tolerance_grad=1e-5,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = loss(inputs @ weight.T + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(objective)
    return weight.detach(), bias.detach()
