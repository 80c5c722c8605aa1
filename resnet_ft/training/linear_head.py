"""The best linear head for features that stand still: a convex problem, solved as one.

Multinomial logistic regression, whose regularisation is chosen by cross-validation. That also gives
probabilities for every image by a head that has not learned from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import LBFGS

# The weight of the squared norm beside the mean loss, for features of mean squared length 1.
_PENALTIES = [10 ** (-power / 2) for power in range(2, 13)]
_FOLDS = 5
_ENOUGH = 10_000  # images to choose the penalty from


@dataclass(frozen=True)
class HeadSolution:
    """A head with `features @ weight.T + bias` for logits, weight (C, D) and bias (C,).

    `probabilities` (N, C) are out of sample: those of image i come from a head that was fitted
    to other folds than the one that holds i. `penalty` is the chosen regularisation.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    probabilities: Tensor


def solve_head(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    weights: Tensor | None = None,
    seed: int = 0,
) -> HeadSolution:
    """The head for features (N, D) and labels (N,), by L-BFGS and five-fold cross-validation.

    Everything is computed on the device of `features`. The penalty is the one with the lowest
    out-of-sample loss; `seed` decides about the folds. `weights` (C,) are those of classes in the
    loss, as `nn.CrossEntropyLoss` takes them.
    """
    centre = features.mean(dim=0)
    length = (features - centre).square().sum(dim=1).mean().sqrt().clamp(min=1e-12)
    inputs = (features - centre) / length
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    folds = _folds(labels, order.to(labels.device))
    loss = nn.CrossEntropyLoss(None if weights is None else weights.to(features.device))
    some = order[:_ENOUGH]
    penalty = _best_penalty(inputs[some], labels[some], folds[some], num_classes, loss)
    probabilities = torch.empty(len(labels), num_classes, device=features.device)
    for fold in range(_FOLDS):
        held_out = folds == fold
        weight, bias = _fit(inputs[~held_out], labels[~held_out], num_classes, loss, penalty)
        probabilities[held_out] = (inputs[held_out] @ weight.T + bias).softmax(dim=1)
    weight, bias = _fit(inputs, labels, num_classes, loss, penalty)
    weight = weight / length
    return HeadSolution(weight, bias - weight @ centre, penalty, probabilities)


def _folds(labels: Tensor, order: Tensor) -> Tensor:
    """A fold for each sample, with every class spread evenly over them."""
    by_class = order[labels[order].argsort(stable=True)]
    folds = torch.empty_like(labels)
    folds[by_class] = torch.arange(len(labels), device=labels.device) % _FOLDS
    return folds


def _best_penalty(
    inputs: Tensor, labels: Tensor, folds: Tensor, num_classes: int, loss: nn.Module
) -> float:
    """The penalty with the lowest loss out of sample, from the strongest on until it rises."""
    fitted: list[Sequence[Tensor] | None] = [None] * _FOLDS
    losses: list[float] = []
    for penalty in _PENALTIES:
        total = 0.0
        for fold in range(_FOLDS):
            held_out = folds == fold
            if not held_out.any():  # fewer images than folds
                continue
            weight, bias = fitted[fold] = _fit(
                inputs[~held_out], labels[~held_out], num_classes, loss, penalty, fitted[fold]
            )
            logits = inputs[held_out] @ weight.T + bias
            total += loss(logits, labels[held_out]).item() * int(held_out.sum())
        losses.append(total)
        if total > 1.02 * min(losses):
            break
    return _PENALTIES[losses.index(min(losses))]


def _fit(
    inputs: Tensor,
    labels: Tensor,
    num_classes: int,
    loss: nn.Module,
    penalty: float,
    start: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the least loss, from a start that is near, if there is one."""
    shapes = ((num_classes, inputs.shape[1]), (num_classes,))
    weight, bias = start or [torch.zeros(shape, device=inputs.device) for shape in shapes]
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
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
