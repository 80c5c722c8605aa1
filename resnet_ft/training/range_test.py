"""A few training steps, each with a learning rate of its own, until the loss diverges."""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing

import pandas as pd
from torch import Tensor

from resnet_ft import engine
from resnet_ft.models.freezing import train_mode
from resnet_ft.progress import progress_bar
from resnet_ft.training.checks import check_batch, check_finite, check_not_empty
from resnet_ft.training.state import TrainingState

_MEMORY = 0.9  # of the running loss: about ten steps
_DIVERGED = 4  # times the lowest running loss


def range_test(state: TrainingState, rates: Sequence[float]) -> pd.DataFrame:
    """Train with these learning rates: a row a step, with its learning_rate and loss.

    The rates are those of the parameter group with the highest; the others keep their ratios to it.
    Ends early where the running loss, an exponential mean, is four times its lowest, or a loss is
    not finite. Raises TrainingError where the first loss is not.
    """
    ratios = [group["lr"] / state.learning_rate for group in state.optimizer.param_groups]
    rows, running, lowest = [], 0.0, math.inf
    prepared = engine.prepared(state.model, state.optimizer)
    with prepared as (net, stepper), closing(_endless(state)) as batches:
        train_mode(net)
        bar = progress_bar(rates, "Finding the learning rate", unit="batch")
        for state.step, rate in enumerate(bar, start=1):
            for group, ratio in zip(state.optimizer.param_groups, ratios, strict=True):
                group["lr"] = rate * ratio
            images, labels = next(batches)
            logits = net(images.to(engine.device(), non_blocking=True))
            check_batch(logits, labels)
            loss = state.criterion(logits, labels.to(engine.device(), non_blocking=True))
            value = loss.item()
            if state.step == 1:
                check_finite(value, state)
            running = _MEMORY * running + (1 - _MEMORY) * value
            mean = running / (1 - _MEMORY**state.step)  # it began at 0
            lowest = min(lowest, mean)
            if not math.isfinite(value) or mean > _DIVERGED * lowest:
                break
            rows.append({"learning_rate": rate, "loss": value})
            stepper.zero_grad()
            engine.backward(loss)
            stepper.step()
    return pd.DataFrame(rows)


def _endless(state: TrainingState) -> Iterator[tuple[Tensor, Tensor]]:
    """The training batches, epoch after epoch."""
    while True:
        state.count = 0
        for batch in state.dataloaders["train"]:
            state.count += 1
            yield batch
        check_not_empty(state)
