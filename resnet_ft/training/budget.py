"""How long a run takes: a number of epochs, or a limit in minutes."""

import copy
import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.utils.data import DataLoader

from resnet_ft import distributed, engine
from resnet_ft.errors import ParameterError
from resnet_ft.models.freezing import train_mode
from resnet_ft.training.averaging import WeightAverage
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.loop import run_step
from resnet_ft.training.rng import without_trace
from resnet_ft.training.run import Run
from resnet_ft.training.state import TrainingState, trainable_parameters

_EPOCHS = 5  # from a head that is right already
_EPOCHS_FROM_RANDOM = 25  # as `train_model`
_TIMING_SECONDS = 6.0  # for the steps that are timed
_FEW_IMAGES = 4


class TimeBudget(Callback):
    """Ends the whole run within `minutes`, its last validation included.

    Training stops, mid-epoch if necessary, when only one more step and a validation fit in, but not
    before the first step. A validation is expected to take as long as the last one, with all that
    callbacks before this one do after it; the first one half as long per step as training. The
    clock starts with the run, or at `started`, a value of `time.perf_counter()`, if earlier work
    counts too. `make_scheduler(optimizer, "cosine", budget)` follows the clock.
    """

    def __init__(self, minutes: float, *, started: float | None = None):
        if not minutes > 0:
            raise ParameterError(f"minutes={minutes} should be more than 0.")
        self._seconds, self._started = 60 * minutes, started
        self._validation_seconds: float | None = None  # of the last one
        self.progress = 0.0  # the share of the training time that is used, from 0 to 1

    @property
    def seconds_left(self) -> float:
        """Until the budget is used up; all of it before the clock starts."""
        if self._started is None:
            return self._seconds
        return self._started + self._seconds - time.perf_counter()

    def on_fit_begin(self, state: TrainingState) -> None:
        self._began = self._phase_began = time.perf_counter()
        self._deadline = self._began + self.seconds_left
        self._step_seconds, self._validation_seconds = 0.0, None

    def on_phase_begin(self, state: TrainingState) -> None:
        self._phase_began = time.perf_counter()

    def on_step_begin(self, state: TrainingState) -> None:
        available = self._deadline - self._next_validation(state) - self._began
        used = time.perf_counter() - self._began
        state.time_used = min(1.0, used / available) if available > 0 else 1.0

    def on_before_optimizer_step(self, state: TrainingState) -> None:
        self.progress = state.time_used  # the same in all processes, unlike their clocks

    def on_step_end(self, state: TrainingState) -> None:
        if state.phase == "train":
            self._step_seconds = (time.perf_counter() - self._phase_began) / state.step
            state.should_stop |= self._is_over(state)

    def on_epoch_end(self, state: TrainingState) -> None:
        self._validation_seconds = time.perf_counter() - self._phase_began
        state.should_stop |= self._is_over(state)

    def _is_over(self, state: TrainingState) -> bool:
        steps = 1 if distributed.count() == 1 else 2  # several processes learn of it a step later
        needed = steps * self._step_seconds + self._next_validation(state)
        return time.perf_counter() + needed > self._deadline

    def _next_validation(self, state: TrainingState) -> float:
        averages = (one for one in state.callbacks if isinstance(one, WeightAverage))
        times = next((one.last_validation for one in averages), 1.0)
        if self._validation_seconds is not None:
            return times * self._validation_seconds
        steps = (state.steps_per_epoch or {}).get("val", 0)  # a stream does not know
        return times * steps * self._step_seconds / 2  # it computes no gradients

    def state_dict(self) -> dict[str, Any]:
        now, started = time.perf_counter(), self._deadline - self._seconds
        return {
            "used": now - started,
            "before": self._began - started,
            "phase": now - self._phase_began,
            "step_seconds": self._step_seconds,
            "validation_seconds": self._validation_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        now = time.perf_counter()
        started = now - state["used"]
        self._deadline, self._began = started + self._seconds, started + state["before"]
        self._phase_began, self._step_seconds = now - state["phase"], state["step_seconds"]
        self._validation_seconds = state["validation_seconds"]


def plan_epochs(
    model: nn.Module,
    dataloaders: Mapping[str, DataLoader],
    *,
    epochs: int | None = None,
    budget: TimeBudget | None = None,
    run: Run | None = None,
) -> int:
    """The number of epochs: `epochs`; by default 5, from random weights 25.

    With a `budget`, as many as begin within it, by a training step that is timed on a copy of the
    model; a resumed `run` keeps its number. Raises ParameterError for both at once and for what is
    not a whole number.
    """
    pretrained = getattr(model, "pretrained", True)
    if epochs is not None:
        if budget is not None:
            raise ParameterError("Give epochs or minutes, not both.")
        if not isinstance(epochs, int) or epochs < 0:
            raise ParameterError(f"epochs={epochs!r} should be a whole number, or None.")
        if epochs == 0 and not pretrained:
            raise ParameterError(
                "epochs=0 trains only the head, which is useless on random weights. Give 1 or more."
            )
        return epochs
    if budget is None:
        return _EPOCHS if pretrained else _EPOCHS_FROM_RANDOM
    recorded = run.config.get("training") if run is not None and run.can_resume else None
    recorded = distributed.from_main(recorded)
    if isinstance(recorded, dict):
        return int(recorded["num_epochs"])

    seconds, step = budget.seconds_left, _step_seconds(model, dataloaders["train"], steps=2)
    affordable = math.ceil(seconds / _epoch_seconds(step, dataloaders)) if seconds > step else 0
    return distributed.from_main(max(0 if pretrained else 1, affordable))


def expected_duration(
    model: nn.Module, dataloaders: Mapping[str, DataLoader], num_epochs: int
) -> str:
    """How long training will take, for a person: "About 14 minutes on cuda (Tesla T4), fp16: ...".

    Up to ten steps of training are timed on a copy of the model, in about six seconds; model,
    loaders and random generators are left as they were. Without a GPU it says so, with the remedy.
    """
    if not num_epochs:
        return "Only the head is computed: no epoch is to be trained."
    step = _step_seconds(model, dataloaders["train"], steps=10)
    seconds = num_epochs * _epoch_seconds(step, dataloaders)
    number, unit = (seconds / 60, "minute") if seconds < 2 * 3600 else (seconds / 3600, "hour")
    took = f"About {number:.0f} {unit}{'' if round(number) == 1 else 's'}"
    epochs = "1 epoch" if num_epochs == 1 else f"{num_epochs} epochs"
    text = (
        f"{took if seconds >= 60 else 'Less than a minute'} on {engine.describe_device()}: "
        f"{epochs} of {len(dataloaders['train'])} steps."
    )
    if engine.device().type == "cpu":
        text += (
            "\nThis is a processor; a GPU is many times faster. In Colab: Runtime > Change runtime "
            "type > T4 GPU. Without one, fewer pixels (image_size), a smaller arch, such as "
            '"resnet18", or the head alone (epochs = 0) are faster.'
        )
    return text


def _epoch_seconds(step: float, dataloaders: Mapping[str, DataLoader]) -> float:
    # The model and its average are validated, each in a third of a step per batch.
    return step * (len(dataloaders["train"]) + len(dataloaders["val"]) * 2 / 3)


def _step_seconds(model: nn.Module, loader: DataLoader, *, steps: int) -> float:
    """What a training step takes, its batch included, by up to `steps` on a copy of the model.

    The first one also allocates memory, and waits for the loader to start. On a processor it has a
    few images of its batch, and so have the others, where all of them would take too long.
    """
    trial, seconds, times = copy.deepcopy(model), _TIMING_SECONDS, list[float]()
    if hasattr(model, "arch"):  # as train_model does
        trial.to(memory_format=torch.channels_last)
    most = _FEW_IMAGES if engine.device().type == "cpu" else None
    prepared = engine.prepared(trial, AdamW(trainable_parameters(trial), lr=0.0))
    with (
        torch.random.fork_rng(),  # dropout draws
        without_trace(loader) as batches,
        prepared as (net, optimizer),
    ):
        train_mode(net)
        waited_since = time.perf_counter()
        for images, labels in batches:
            began = time.perf_counter()
            run_step(net, (images[:most], labels[:most]), nn.CrossEntropyLoss(), optimizer)
            next(net.parameters()).cpu()  # a GPU answers when its work is done
            step = time.perf_counter() - began
            whole = step * len(labels) / len(labels[:most])
            times.append(began - waited_since + whole)
            seconds -= step
            most = most if whole > _TIMING_SECONDS / 2 else None
            if len(times) > steps or (len(times) > 1 and seconds < 0):
                break
            waited_since = time.perf_counter()
    return statistics.median(times[1:] or times or [math.inf])
