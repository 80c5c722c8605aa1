"""find_lr: the learning rate to train with, found in a trial on a copy of the model."""

import copy
import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader

from resnet_ft import engine
from resnet_ft.data.batches import device_batches
from resnet_ft.errors import ParameterError, TrainingError
from resnet_ft.models.check import check_model
from resnet_ft.models.freezing import train_mode
from resnet_ft.notebook import progress_bar
from resnet_ft.training.loop import Batch, run_step
from resnet_ft.training.rng import without_trace
from resnet_ft.training.state import check_optimizer, check_shares, trainable_parameters
from resnet_ft.visualize.style import BLUE, GREY, ORANGE, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEMORY = 0.9  # of the running loss: about ten steps
_DIVERGED = 4  # times the lowest running loss
_FEWEST_STEPS, _MOST_STEPS = 20, 100


@dataclass(frozen=True)
class LRFinder:
    """What `find_lr` measured: `history` has a row per step with learning_rate, loss and smoothed.

    Losses are in nats. `smoothed` is a mean over earlier and later steps; the usual running mean
    lags, so it falls at learning rates that are several times too high.
    """

    history: pd.DataFrame

    @property
    def suggestion(self) -> float:
        """The learning rate where the smoothed loss falls most steeply, before its minimum.

        Raises TrainingError where it falls by no more than the loss varies from batch to batch.
        """
        step = self._steepest()
        if step is None:
            rates = self.history["learning_rate"]
            raise TrainingError(
                f"The loss does not fall from {rates.iloc[0]:.0e} to {rates.iloc[-1]:.0e}. Look at "
                "plot(): raise `highest` if it is still flat at the end, lower `lowest` if it "
                "rises at once, and take larger batches or more steps if it is all noise."
            )
        return float(self.history["learning_rate"][step])

    def plot(self, *, ax: "Axes | None" = None) -> "Axes":
        """The loss over the learning rate, with the suggestion marked."""
        from matplotlib.ticker import LogFormatter

        rates, loss, smoothed = self.history.to_numpy().T
        step = self._steepest()
        with drawing(ax, (7, 3.8)) as ax:
            ax.plot(rates, loss, ".", color=GREY, alpha=0.5, label="each batch")
            ax.plot(rates, smoothed, color=BLUE, label="smoothed")
            ax.set(xscale="log", xlabel="learning rate", ylabel="training loss (cross-entropy)")
            ax.xaxis.set_major_formatter(LogFormatter())  # "1e-04", where the default is a formula
            ax.xaxis.set_minor_formatter(LogFormatter())
            ax.set_ylim(0, 1.15 * loss[: smoothed.argmin() + 1].max())
            ax.set_title("The loss does not fall")
            if step is not None:
                ax.axvline(rates[step], color=ORANGE, linestyle="--")
                ax.set_title(f"Steepest fall at {rates[step]:.1e}")
            ax.legend(loc="lower left")
        return ax

    def _steepest(self) -> int | None:
        """The step of the steepest fall; the first and last few, with few neighbours, are out."""
        rates, loss, smoothed = self.history.to_numpy().T
        lowest, edge = int(smoothed.argmin()), math.ceil(len(rates) / 20)
        stop = min(lowest, len(rates) - edge)
        varies = np.std(loss[: lowest + 1] - smoothed[: lowest + 1])
        if stop <= edge or smoothed[edge] - smoothed[lowest] <= varies:
            return None
        slopes = np.gradient(smoothed, np.log(rates))
        return edge + int(slopes[edge:stop].argmin())


def find_lr(
    model: nn.Module,
    dataloader: DataLoader,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    optimizer: Optimizer | None = None,
    *,
    lowest: float = 1e-7,
    highest: float = 1.0,
    num_steps: int = 100,
) -> LRFinder:
    """Train for `num_steps` batches with a learning rate that grows from `lowest` to `highest`.

    The learning-rate range test (Smith, WACV 2017). `model` and `dataloader` are as for
    `train_model`; the loader starts again as often as necessary. By default the loss is
    cross-entropy and Adam trains what is not frozen. In an `optimizer` of your own, the parameter
    group with the highest learning rate gets these, and the others keep their ratio to it. Ends
    early once the loss has grown to four times its lowest, or is not finite.

    It trains a copy of model, criterion and optimizer. They, all random generators and the loader's
    place in its epochs are left as they were, also after an interrupt. Raises TrainingError for
    what cannot be trained, ParameterError for a range that is empty.
    """
    if not 0 < lowest < highest or num_steps < _FEWEST_STEPS:
        raise ParameterError(
            f"lowest={lowest}, highest={highest}, num_steps={num_steps}: learning rates should be "
            "positive and grow, in 20 steps or more."
        )
    model = engine.unwrapped(model)
    optimizer = optimizer or Adam(trainable_parameters(model), lr=highest)
    check_optimizer(model, optimizer)
    check_shares({"train": dataloader})
    check_model(model, dataloader, micro_batches=1)
    model, criterion, optimizer = copy.deepcopy(
        (model, criterion or nn.CrossEntropyLoss(), optimizer)
    )
    if isinstance(criterion, nn.Module):
        criterion.to(engine.device())
    top = max(group["lr"] for group in optimizer.param_groups)
    ratios = [group["lr"] / top for group in optimizer.param_groups]

    rows, running, lowest_mean, micro_batches = [], 0.0, math.inf, 1
    rates = np.geomspace(lowest, highest, num_steps).tolist()
    prepared = engine.prepared(model, optimizer)
    with (
        without_trace(dataloader) as loader,
        prepared as (net, stepper),
        closing(_endless(loader)) as batches,
    ):
        train_mode(net)
        bar = progress_bar(rates, "Finding the learning rate", unit="batch")
        for step, rate in enumerate(bar, start=1):
            for group, ratio in zip(stepper.param_groups, ratios, strict=True):
                group["lr"] = rate * ratio
            output = run_step(net, next(batches), criterion, stepper, micro_batches=micro_batches)
            loss, micro_batches = output.loss.item(), output.micro_batches
            if step == 1 and not math.isfinite(loss):
                raise TrainingError(
                    f"The loss of the first batch is {loss}. Look for broken images or labels with "
                    "notebook 02, and check the criterion."
                )
            running = _MEMORY * running + (1 - _MEMORY) * loss
            mean = running / (1 - _MEMORY**step)  # it began at 0
            lowest_mean = min(lowest_mean, mean)
            if not math.isfinite(loss) or mean > _DIVERGED * lowest_mean:
                bar.total = step - 1  # all that it counted: it is no failure, which is shown in red
                break
            rows.append({"learning_rate": rate, "loss": loss})
    history = pd.DataFrame(rows)
    history["smoothed"] = gaussian_filter1d(history["loss"], num_steps / 20)
    return LRFinder(history)


def plan_lr_finder(num_steps: int | None, training_steps: int) -> int:
    """How many steps `find_lr` should take: `num_steps`; where that is None, the library chooses.

    On a processor that is 0, elsewhere up to 100, and at most a tenth of the `training_steps`. It
    prints why there are none.
    """
    if num_steps is not None:
        return num_steps
    affordable = min(_MOST_STEPS, training_steps // 10)
    if engine.device().type == "cpu":
        print("Left out on a processor: it would take longer than it is worth.")
    elif affordable < _FEWEST_STEPS:
        print(f"Left out: it would take more than a tenth of the {training_steps} training steps.")
    else:
        return affordable
    print("Nothing to do: the default learning rate is used. (lr_finder_steps = 30 shows it.)")
    return 0


def _endless(loader: DataLoader) -> Generator[Batch, None, None]:
    """The batches of a loader, epoch after epoch."""
    while True:
        batch = None
        for batch in device_batches(loader):
            yield batch
        if batch is None:
            raise TrainingError("The loader yields no batch. Has it less than one, with drop_last?")
