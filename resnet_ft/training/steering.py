"""What steers a run: when it stops, and how its learning rate goes."""

import math

from torch.optim.lr_scheduler import LRScheduler

from resnet_ft.errors import ParameterError
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.state import TrainingState


class EarlyStop(Callback):
    """Ends the run when `metric` has not improved by more than `min_delta` for `patience` epochs.

    `metric` is a column of the history: the lower the better where its name ends in "loss", the
    higher the better where it ends in "accuracy". Raises ParameterError for any other, and for a
    column that there is none of.
    """

    def __init__(self, patience: int = 5, *, min_delta: float = 0.0, metric: str = "val_loss"):
        if patience < 1:
            raise ParameterError(f"patience={patience} should be 1 epoch or more.")
        if not metric.endswith(("loss", "accuracy")):
            raise ParameterError(f"metric={metric!r} should end in loss or in accuracy.")
        self.patience, self.min_delta, self.metric = patience, min_delta, metric
        self._sign = -1.0 if metric.endswith("loss") else 1.0

    def on_fit_begin(self, state: TrainingState) -> None:
        # Of the metric with its sign: higher is better. A first row may be that of the head alone.
        values = [self._sign * row[self.metric] for row in state.rows if self.metric in row]
        self._best = max(values, default=-math.inf)
        self._epochs_without = 0

    def on_epoch_end(self, state: TrainingState) -> None:
        if self.metric not in state.row:
            raise ParameterError(
                f"metric={self.metric!r} is no column of the history: {', '.join(state.row)}."
            )
        value = self._sign * state.row[self.metric]
        if value > self._best + self.min_delta:
            self._best, self._epochs_without = value, 0
        else:
            self._epochs_without += 1
        state.should_stop |= self._epochs_without >= self.patience

    def state_dict(self) -> dict[str, object]:
        return {"best": self._best, "epochs_without": self._epochs_without}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self._best, self._epochs_without = state["best"], state["epochs_without"]


class StepScheduler(Callback):
    """Steps a torch scheduler of learning rates after every training step."""

    def __init__(self, scheduler: LRScheduler):
        self.scheduler = scheduler

    def on_step_end(self, state: TrainingState) -> None:
        if state.phase == "train":
            self.scheduler.step()

    def state_dict(self) -> dict[str, object]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.scheduler.load_state_dict(state)


def warmup_cosine(progress: float, warmup: float = 0.1) -> float:
    """The factor of the learning rate, 0 to 1, when `progress`, 0 to 1, of the training is over.

    It rises linearly from 0.01 to 1 during the share `warmup`, then falls to 0 along half a cosine:
    `LambdaLR(optimizer, lambda step: warmup_cosine(step / total_steps))`. The warm-up is that of
    Goyal et al. (2017, arXiv:1706.02677), the cosine that of Loshchilov and Hutter (2017,
    arXiv:1608.03983).
    """
    if progress < warmup:
        return 0.01 + 0.99 * progress / warmup
    if progress >= 1:
        return 0.0
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
