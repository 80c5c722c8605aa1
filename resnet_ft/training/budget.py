"""A run within so many minutes."""

import copy
import math
import time

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from resnet_ft import distributed, engine
from resnet_ft.errors import ParameterError
from resnet_ft.models.freezing import train_mode
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.loop import run_step
from resnet_ft.training.schedule import StepScheduler, warmup_cosine
from resnet_ft.training.state import TrainingState, trainable_parameters


class TimeBudget(Callback):
    """Ends the whole run within so many minutes, its last validation included.

    Training stops, amid an epoch if need be, when no more than one step and a validation still fit
    in. A validation is expected to take as long as the one before, with all that callbacks do after
    it (hand this one over last, then theirs is counted too); the first one half as long a step as
    training. At least one step is made. The clock starts with the run, or at `started`, a value of
    `time.perf_counter()`, where work before it counts too.
    """

    def __init__(self, minutes: float, *, started: float | None = None):
        if not minutes > 0:
            raise ParameterError(f"minutes={minutes} should be more than 0.")
        self._seconds, self._started = 60 * minutes, started
        self._began: float | None = None
        self._progress: float | None = None

    @property
    def progress(self) -> float:
        """How much of the time for training is over: 0 when it begins, 1 when it has to stop.

        A schedule can follow it:
        `LambdaLR(optimizer, lambda step: warmup_cosine(budget.progress))`.
        """
        if self._began is None:
            return 0.0
        if self._progress is None:
            self._progress = self._present_progress()
        return self._progress

    def _present_progress(self) -> float:
        available = self._deadline - self._validation_seconds - self._began
        passed = time.perf_counter() - self._began
        # Clocks differ, but all processes have to train at the same rate.
        return distributed.from_main(min(1.0, passed / available) if available > 0 else 1.0)

    @property
    def seconds_left(self) -> float:
        """Until the budget is used up; all of it before the clock starts."""
        if self._started is None:
            return self._seconds
        return self._started + self._seconds - time.perf_counter()

    def on_fit_begin(self, state: TrainingState) -> None:
        self._began = self._phase_began = time.perf_counter()
        started = self._began if self._started is None else self._started
        self._deadline = started + self._seconds
        self._step_seconds = self._validation_seconds = 0.0
        self._has_validated = False

    def on_step_begin(self, state: TrainingState) -> None:
        self._progress = None  # once a step, since it is asked for every parameter group

    def on_phase_begin(self, state: TrainingState) -> None:
        self._phase_began = time.perf_counter()

    def on_step_end(self, state: TrainingState) -> None:
        if state.phase != "train":
            return
        self._step_seconds = (time.perf_counter() - self._phase_began) / state.step
        if not self._has_validated:
            steps = (state.steps_per_epoch or {}).get("val", 0)  # a stream does not know
            self._validation_seconds = steps * self._step_seconds / 2  # it computes no gradients
        state.should_stop |= self._is_over()

    def on_epoch_end(self, state: TrainingState) -> None:
        self._validation_seconds = time.perf_counter() - self._phase_began
        self._has_validated = True
        state.should_stop |= self._is_over()

    def state_dict(self) -> dict[str, object]:
        now, started = time.perf_counter(), self._deadline - self._seconds
        return {
            "used": now - started,
            "before": self._began - started,
            "phase": now - self._phase_began,
            "step_seconds": self._step_seconds,
            "validation_seconds": self._validation_seconds if self._has_validated else None,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        now = time.perf_counter()
        started = now - state["used"]
        self._deadline, self._began = started + self._seconds, started + state["before"]
        self._phase_began, self._step_seconds = now - state["phase"], state["step_seconds"]
        self._has_validated = state["validation_seconds"] is not None
        self._validation_seconds = state["validation_seconds"] or 0.0

    def _is_over(self) -> bool:
        needed = self._step_seconds + self._validation_seconds
        return time.perf_counter() + needed > self._deadline


_EPOCHS = 5  # from a head that is right already
_FROM_RANDOM = 25  # as `train_model`


def paced(
    model: nn.Module,
    dataloaders: dict[str, DataLoader],
    optimizer: Optimizer,
    *,
    epochs: int | None,
    budget: TimeBudget | None,
) -> tuple[int, list[Callback]]:
    """How many epochs, and callbacks that lead the learning rate through them, up and down."""
    pretrained = getattr(model, "pretrained", True)
    if budget is not None:
        schedule = LambdaLR(optimizer, lambda _: warmup_cosine(budget.progress))
        at_least = 0 if pretrained else 1
        if epochs is None:
            affordable = _affordable_epochs(model, dataloaders, budget.seconds_left)
            epochs = distributed.from_main(max(at_least, affordable))
        return epochs, [StepScheduler(schedule), budget]
    if epochs is None:
        epochs = _EPOCHS if pretrained else _FROM_RANDOM
    total = max(1, epochs * len(dataloaders["train"]))
    return epochs, [StepScheduler(LambdaLR(optimizer, lambda step: warmup_cosine(step / total)))]


def _affordable_epochs(model: nn.Module, dataloaders: dict[str, DataLoader], seconds: float) -> int:
    """How many epochs begin within so many seconds, from a step of training that is measured.

    It is made on a copy, with images of zeros, so that nothing else changes.
    """
    trial = copy.deepcopy(model)
    if hasattr(model, "arch"):  # as train_model does
        trial.to(memory_format=torch.channels_last)
    batches = {phase: len(dataloaders[phase]) for phase in ("train", "val")}
    image = dataloaders["val"].dataset[0][0]
    size = getattr(dataloaders["train"].batch_sampler, "batch_size", None) or 32
    images = torch.zeros(math.ceil(size / distributed.count()), *image.shape)
    optimizer = SGD(trainable_parameters(trial), lr=0.0)
    state = TrainingState(trial, dataloaders, nn.CrossEntropyLoss(), optimizer, None, 1)
    with torch.random.fork_rng():  # dropout draws
        step = _step_seconds(state, images)
    # Both networks, the present one and the average, are validated, in a third of a step each.
    epoch = step * (batches["train"] + batches["val"] * 2 / 3)
    return math.ceil(seconds / epoch) if seconds > step else 0


def _step_seconds(state: TrainingState, images: Tensor) -> float:
    """The faster of two steps: the first one has memory to fetch."""
    labels, taken = torch.zeros(len(images), dtype=torch.long), []
    with engine.prepared(state.model, state.optimizer) as (net, stepper):
        train_mode(net)
        for _ in range(2):
            started = time.perf_counter()
            run_step(state, net, stepper, images, labels)
            next(net.parameters()).cpu()  # a GPU's work is done when it answers
            taken.append(time.perf_counter() - started)
    return min(taken)
