"""The best linear head for given features: multinomial logistic regression, a convex problem.

Cross-validation chooses its regularisation, and gives probabilities for every image by a head that
has not learned from it.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import LBFGS

from resnet_ft import engine
from resnet_ft.errors import TrainingError

# The weight of the squared norm beside the mean loss, for features of mean squared length 1.
_PENALTIES = [10 ** (-power / 2) for power in range(2, 13)]
_FOLDS = 5
_ENOUGH = 10_000  # images to choose the penalty from
_PLENTY = 100_000  # images of which half teach a head nearly as much as four fifths
_STEEP = 1e-3  # a gradient that is no minimum's: 100 times what L-BFGS ends at
_LINE_SEARCH = 25  # evaluations at most, in PyTorch's L-BFGS
_CHUNK = 2**24  # bytes of features and logits at once: memory that is used again; GPUs take more
_IN_MEMORY = 2**30  # bytes of inputs that stay in the memory of a processor; others are read anew
_MOST_IN_FULL = 2**28  # probabilities in full precision: 1 GiB


class _Solution(NamedTuple):
    weight: Tensor  # (C, D): the logits are features @ weight.T + bias
    bias: Tensor  # (C,)
    penalty: float
    probabilities: Tensor  # (N, C), of each image by a head that was fitted to the folds without it
    losses: Tensor  # (N,), cross-entropy of the same


def solve_head(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    weights: Tensor | None = None,
    seed: int = 0,
) -> _Solution:
    """The head for features (N, D) and labels (N,), by L-BFGS and five-fold cross-validation.

    The penalty is the one with the lowest out-of-sample loss on 10,000 images or fewer; `seed`
    shuffles the folds. The probabilities of more than 100,000 images come from two folds; those
    that would take more than 1 GiB are in half precision. `weights` (C,) are class weights, as
    `nn.CrossEntropyLoss` takes them. `features`, of any float type, are read in chunks, so they can
    be mapped from a file that is larger than memory. Warns, once, where L-BFGS ended before a
    minimum. Raises TrainingError for features that are not finite.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    labels = labels.cpu()
    folds = _folds(labels, order)
    solver = Solver(features, labels, num_classes, weights)

    # Penalties from the strongest on, until the out-of-sample loss rises.
    some = order[:_ENOUGH]
    fits: dict[int, _Layer] = {}  # by fold; there may be fewer images than folds
    losses: list[float] = []
    for penalty in _PENALTIES:
        losses.append(0.0)
        for fold in folds[some].unique().tolist():
            held_out = folds[some] == fold
            fits[fold] = solver.fit(some[~held_out], penalty, start=fits.get(fold))
            losses[-1] += solver.mean_loss(fits[fold], some[held_out]) * int(held_out.sum())
        if losses[-1] > 1.02 * min(losses):
            break
    penalty = _PENALTIES[losses.index(min(losses))]

    if len(labels) > _PLENTY:
        folds = _folds(labels, order, 2)
    found = empty_predictions(len(labels), num_classes)
    layers = []
    for fold in folds.unique().tolist():
        held_out = folds == fold
        layers.append(solver.fit((~held_out).argwhere()[:, 0], penalty))
        solver.predict(layers[-1], held_out.argwhere()[:, 0], *found)
    mean = _Layer(*(torch.stack(one).mean(dim=0) for one in zip(*layers, strict=True)))
    start = mean if len(labels) > _ENOUGH else None  # that of all is near: half as many passes
    weight, bias = solver.fit(torch.arange(len(labels)), penalty, start=start)
    if solver.ended:
        warnings.warn(
            f"{solver.ended} while the head was solved: it is the best that was found by then.",
            stacklevel=2,
        )
    weight = weight / solver.inputs.length
    return _Solution(weight, bias - weight @ solver.inputs.centre, penalty, *found)


def empty_predictions(images: int, classes: int) -> tuple[Tensor, Tensor]:
    """Room for probabilities (N, C), in half precision where they are many, and losses (N,)."""
    dtype = torch.float if images * classes <= _MOST_IN_FULL else torch.half
    return torch.empty(images, classes, dtype=dtype), torch.empty(images)


def _folds(labels: Tensor, order: Tensor, number: int = _FOLDS) -> Tensor:
    """A fold for each sample, with each class spread evenly over them."""
    by_class = order[labels[order].argsort(stable=True)]
    folds = torch.empty_like(labels)
    folds[by_class] = torch.arange(len(labels), device=labels.device) % number
    return folds


class _Layer(NamedTuple):
    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)


class _Inputs:
    """Features (N, D), moved to mean 0 and scaled to a mean squared length of 1."""

    def __init__(self, features: Tensor, rows_at_once: int) -> None:
        self._features, self._device = features, engine.device()
        self.centre, self.length = torch.zeros(features.shape[1], device=self._device), 1.0
        parts = torch.arange(len(features)).split(rows_at_once)
        total = torch.zeros(features.shape[1], dtype=torch.float64)
        for part in parts:
            total += self.rows(part).sum(dim=0).cpu()
        self.centre = (total / len(features)).float().to(self._device)
        square = sum(self.rows(part).square().sum().item() for part in parts) / len(features)
        if not math.isfinite(square):
            raise TrainingError(
                "The head cannot be solved: of some images, the features are not finite, or above "
                "1e18. Look for broken images with notebook 02, and check the model's weights."
            )
        self.length = max(math.sqrt(square), 1e-12)

    def rows(self, rows: Tensor) -> Tensor:
        """The inputs (n, D) of these rows, floats on the device."""
        copied = self._features[rows].to(self._device).float()
        return copied.sub_(self.centre).div_(self.length)


def _room() -> int:
    """How many bytes of inputs may stay on the device while a layer is fitted to them."""
    if engine.device().type != "cuda":
        return _IN_MEMORY
    engine.free_memory()
    return torch.cuda.mem_get_info(engine.device())[0] // 2


class Solver:
    """Finds, by L-BFGS, the layer for some rows of the features, which it reads in chunks."""

    def __init__(
        self, features: Tensor, labels: Tensor, num_classes: int, weights: Tensor | None
    ) -> None:
        self._labels, self._num_classes = labels, num_classes
        self._weights = None if weights is None else weights.to(engine.device())
        chunk = _CHUNK if engine.device().type == "cpu" else 16 * _CHUNK
        self._at_once = max(1, chunk // (4 * (features.shape[1] + num_classes)))
        self.inputs = _Inputs(features, self._at_once)
        self._fitting = _room() // (4 * features.shape[1])  # rows
        self.ended = ""  # why L-BFGS ended before a minimum, if it did

    def fit(self, rows: Tensor, penalty: float, *, start: _Layer | None = None) -> _Layer:
        """The layer of the lowest loss on these rows, searched from zeros or from a `start`."""
        layer = self.start(start)
        with torch.enable_grad():
            ended = minimise(self.objective(layer, rows, penalty), [*layer])
        self.ended = self.ended or ended
        return _Layer(*(tensor.detach() for tensor in layer))

    def start(self, layer: _Layer | None = None) -> _Layer:
        """A layer to train: a copy of another one, or zeros."""
        if layer is None:
            bias = self.inputs.centre.new_zeros(self._num_classes)
            layer = _Layer(bias.new_zeros(self._num_classes, len(self.inputs.centre)), bias)
        return _Layer(*(tensor.clone().requires_grad_() for tensor in layer))

    def objective(self, layer: _Layer, rows: Tensor, penalty: float) -> Callable[[], float]:
        """A pass over the rows: returns the loss and adds the layer's gradients, chunk by chunk."""
        parts, labels, total = self._split(rows)
        ready = [self.inputs.rows(part) for part in parts] if len(rows) <= self._fitting else None

        def pass_over() -> float:
            terms = [penalty / 2 * layer.weight.square().sum()]
            terms[0].backward()
            for inputs, true in zip(ready or map(self.inputs.rows, parts), labels, strict=True):
                terms.append(self._loss(layer, inputs, true) / total)
                terms[-1].backward()
            return sum(torch.stack(terms).tolist())

        return pass_over

    def mean_loss(self, layer: _Layer, rows: Tensor) -> float:
        """The layer's loss on these rows, without the penalty."""
        parts, labels, total = self._split(rows)
        sums = [
            self._loss(layer, self.inputs.rows(part), true).item()
            for part, true in zip(parts, labels, strict=True)
        ]
        return sum(sums) / total

    def _split(self, rows: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor], float]:
        """Rows and their labels in chunks, and the total of their weights."""
        labels = self._labels[rows].to(engine.device())
        total = len(rows) if self._weights is None else self._weights[labels].sum().item()
        return rows.split(self._at_once), labels.split(self._at_once), total

    def _loss(self, layer: _Layer, inputs: Tensor, labels: Tensor) -> Tensor:
        logits = inputs @ layer.weight.T + layer.bias
        return cross_entropy(logits, labels, self._weights, reduction="sum")

    @torch.no_grad()
    def predict(self, layer: _Layer, rows: Tensor, probabilities: Tensor, losses: Tensor) -> None:
        """Write what the layer says of these rows into (N, C) and (N,)."""
        parts, labels, _ = self._split(rows)
        for part, true in zip(parts, labels, strict=True):
            logits = self.inputs.rows(part) @ layer.weight.T + layer.bias
            probabilities[part] = logits.softmax(dim=1).to(probabilities)
            losses[part] = cross_entropy(logits, true, reduction="none").cpu()


class _Stalled(Exception):
    """The objective is not finite, or a whole line search has found nothing lower."""


def minimise(objective: Callable[[], float], parameters: list[Tensor]) -> str:
    """Leave `parameters` where L-BFGS found the lowest value of the objective.

    The objective adds to their gradients. Returns why it ended before a minimum, "" if it did not.
    """
    optimizer = LBFGS(
        parameters,
        max_iter=200,
        history_size=10,
        tolerance_grad=1e-5,
        line_search_fn="strong_wolfe",
    )
    value = lowest = math.inf
    slope, in_vain = 0.0, 0
    best = [tensor.detach().clone() for tensor in parameters]

    def evaluate() -> float:
        nonlocal value, lowest, slope, in_vain
        optimizer.zero_grad()
        value = objective()
        in_vain += 1
        if value < lowest:
            lowest, in_vain = value, 0
            gradients = [tensor.grad for tensor in parameters if tensor.grad is not None]
            slope = max(gradient.abs().max().item() for gradient in gradients)
            for kept, tensor in zip(best, parameters, strict=True):
                kept.copy_(tensor.detach())
        if not math.isfinite(value) or in_vain > _LINE_SEARCH:
            raise _Stalled
        return value

    with suppress(_Stalled):
        optimizer.step(evaluate)
    with torch.no_grad():
        for kept, tensor in zip(best, parameters, strict=True):
            tensor.copy_(kept)
    if not math.isfinite(value):
        return "The loss became infinite or not a number"
    return "L-BFGS stopped before a minimum" if slope > _STEEP else ""
