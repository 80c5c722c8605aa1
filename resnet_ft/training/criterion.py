"""What a criterion's mean divides by, so that parts of a batch and processes add up to the batch.

nn.CrossEntropyLoss with class weights or ignored labels divides by the weights of the labels, not
by their number. Losses of parts are therefore weighted with the criterion's own denominators.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from resnet_ft import distributed
from resnet_ft.errors import ParameterError, TrainingError

Criterion = Callable[[Tensor, Tensor], Tensor]


def check_criterion(criterion: Criterion) -> None:
    """Raise ParameterError for a criterion that gives a loss per sample."""
    if getattr(criterion, "reduction", "mean") == "none":
        raise ParameterError(
            f'{criterion} gives a loss per sample. Make it with reduction="mean" or "sum".'
        )


def adds_up(criterion: Criterion) -> bool:
    """Whether the criterion adds up the losses of samples, in place of their mean."""
    return getattr(criterion, "reduction", "mean") == "sum"


def weight_of(criterion: Criterion, labels: Tensor) -> float:
    """What the criterion divides by for these labels: their number or the sum of their weights."""
    is_known = isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss) and not adds_up(criterion)
    if not is_known or labels.is_floating_point():  # a mixed batch counts each image once
        return len(labels)
    known: Any = criterion
    counted = labels[labels != known.ignore_index]
    if known.weight is None:
        return len(counted)
    last = len(known.weight) - 1  # a label without an output is refused elsewhere
    return float(_copied_weight(known)[counted.cpu().clamp(0, last)].sum().numpy())


_COPIES: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()


def _copied_weight(criterion: nn.CrossEntropyLoss | nn.NLLLoss) -> Tensor:
    """The class weights on the processor, copied when they change: a step waits for no copy."""
    weight: Any = criterion.weight
    version = id(weight), weight._version
    if _COPIES.get(criterion, (None,))[0] != version:
        _COPIES[criterion] = version, weight.detach().cpu()
    return _COPIES[criterion][1]


def check_additive(
    criterion: Criterion, logits: Tensor, labels: Tensor, mean_of_parts: Tensor
) -> None:
    """Raise TrainingError where a batch's loss is not the mean over the samples of its parts.

    `logits` and `labels` are those of this process's batch, whose parts gave `mean_of_parts`. The
    criteria that `weight_of` knows need no such test.
    """
    if adds_up(criterion) or isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
        return
    counts = distributed.gathered(mean_of_parts.new_full((1,), len(labels)))
    means = distributed.gathered(mean_of_parts.reshape(1))
    whole = criterion(*(torch.cat(distributed.gathered(one)) for one in (logits, labels)))
    expected = sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
    if not torch.allclose(whole, torch.as_tensor(expected), rtol=1e-3, atol=1e-6):
        raise TrainingError(
            f"The criterion gives {whole.item():.4g} for a batch, but {float(expected):.4g} as the "
            "mean of its parts, so a batch cannot be split into micro-batches or over processes. "
            "Train in one process with a batch_size that fits into memory and without "
            "gradient_accumulation_steps, or use nn.CrossEntropyLoss."
        )
