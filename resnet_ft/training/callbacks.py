"""Callbacks: the hooks that `train_model` calls, and four callbacks that any run may use."""

import math
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from resnet_ft.errors import ParameterError
from resnet_ft.evaluation.scores import beats_largest_class, largest_class_share
from resnet_ft.files import user_path
from resnet_ft.frontend import is_live
from resnet_ft.notebook import progress_bar
from resnet_ft.training.describe import describe_training
from resnet_ft.training.state import TrainingState
from resnet_ft.visualize.curves import plot_history
from resnet_ft.visualize.style import BLUE, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Callback:
    """Empty hooks: fill those that you need and hand it to `train_model(callbacks=[...])`.

    A fit has epochs, an epoch the phases "train" and "val", a phase steps. When a run is resumed
    mid-epoch, fit begins, `load_state_dict` gets what `state_dict` gave, and steps follow. Each of
    several processes has its own callbacks, except those that are `only_in_main_process` because
    they show or write something.
    """

    only_in_main_process = False

    def on_fit_begin(self, state: TrainingState) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, state: TrainingState) -> None:
        """Before an epoch's first phase."""

    def on_phase_begin(self, state: TrainingState) -> None:
        """Before the first batch of "train" and of "val", in every epoch."""

    def on_step_begin(self, state: TrainingState) -> None:
        """Before every batch."""

    def on_before_optimizer_step(self, state: TrainingState) -> None:
        """In training, when all gradients are there, before they are clipped and used."""

    def on_step_end(self, state: TrainingState) -> None:
        """After every batch; `state.output` has its images, labels, logits and loss.

        They are tensors on the device. To read one, as `.item()` or `.cpu()` does, waits until a
        GPU has caught up, and then it has nothing to do for a while: read rarely.
        """

    def on_phase_end(self, state: TrainingState) -> None:
        """After a phase; `state.row` has its means and takes columns of your own."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """After an epoch's validation; `state.rows[-1]` is its row of the history."""

    def on_interrupt(self, state: TrainingState) -> None:
        """When an exception or Ctrl-C ends the run, before the model gets its best weights."""

    def on_fit_end(self, state: TrainingState) -> None:
        """At the end, also after `on_interrupt`; the model has its best weights."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue as before: tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""


class EarlyStop(Callback):
    """Ends the run when `metric` has not improved by more than `min_delta` for `patience` epochs.

    `metric` is a column of the history whose name ends in "loss" (lower is better) or "accuracy"
    (higher is better). Raises ParameterError for any other, and for a missing column.
    """

    def __init__(self, patience: int = 5, *, min_delta: float = 0.0, metric: str = "val_loss"):
        if patience < 1:
            raise ParameterError(f"patience={patience} should be 1 epoch or more.")
        if not metric.endswith(("loss", "accuracy")):
            raise ParameterError(f"metric={metric!r} should end in loss or in accuracy.")
        self.patience, self.min_delta, self.metric = patience, min_delta, metric
        self._sign = -1.0 if metric.endswith("loss") else 1.0
        self.waits_again = False  # whether a run that it ended would not end by its patience now

    def on_fit_begin(self, state: TrainingState) -> None:
        # With the sign, higher is better. The first row may be that of the head alone.
        values = [self._sign * row[self.metric] for row in state.rows if self.metric in row]
        self._best = max(values, default=-math.inf)
        self._epochs_without = 0

    def on_epoch_end(self, state: TrainingState) -> None:
        if self.metric not in state.row:
            raise ParameterError(
                f"The history has no column {self.metric!r}. It has {', '.join(state.row)}."
            )
        value = self._sign * state.row[self.metric]
        if value > self._best + self.min_delta:
            self._best, self._epochs_without = value, 0
        else:
            self._epochs_without += 1
        state.should_stop |= self._epochs_without >= self.patience

    def state_dict(self) -> dict[str, Any]:
        counts = {"best": self._best, "epochs_without": self._epochs_without}
        return {**counts, "patience": self.patience}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._epochs_without = state["best"], state["epochs_without"]
        before = state.get("patience", self.patience)
        self.waits_again = before <= self._epochs_without < self.patience


class ProgressBar(Callback):
    """One bar for the run, with the present batch, its loss and the time left; a line per epoch.

    The loss in the bar is the mean over the batches of this epoch so far; the accuracy in the line
    is that of validation. Log files, CI and notebooks that papermill runs get the lines alone.
    """

    only_in_main_process = True

    def on_fit_begin(self, state: TrainingState) -> None:
        steps = state.steps_per_epoch
        total = state.num_epochs * sum(steps.values()) if steps else None
        self.bar = progress_bar(total=total, unit="batch", bar_format=_BAR if steps else None)
        self._next_reading = 0.0

    def on_phase_begin(self, state: TrainingState) -> None:
        if state.should_stop and state.steps_per_epoch:
            self.bar.total = self.bar.n + state.steps_per_epoch[state.phase]
        self._describe(state, refresh=True)

    def on_step_end(self, state: TrainingState) -> None:
        if (now := time.perf_counter()) > self._next_reading:  # which waits for a GPU
            loss = state.sums["loss"] / (state.sums["weight"] or math.nan)
            self.bar.set_postfix_str(f"loss {float(loss):.3f}", refresh=False)
            self._next_reading = now + _SECONDS_BETWEEN_READINGS
        self._describe(state, refresh=False)  # the next line does, ten times a second at most
        self.bar.update()

    def _describe(self, state: TrainingState, *, refresh: bool) -> None:
        phase = "" if state.phase == "train" else f"{state.phase} "
        of_all = f"/{state.steps_per_epoch[state.phase]}" if state.steps_per_epoch else ""
        text = f"epoch {state.epoch}/{state.num_epochs}, {phase}batch {state.step}{of_all}"
        self.bar.set_description(text, refresh=refresh)

    def on_epoch_end(self, state: TrainingState) -> None:
        row = state.rows[-1]
        labels = _val_labels(state)  # a model that guesses is not praised
        accuracy = max(row["val_accuracy"], row.get("ema_val_accuracy", 0))
        is_praised = state.is_best and (not labels or beats_largest_class(accuracy, labels))
        average = f", average {row['ema_val_accuracy']:.1%}" if "ema_val_accuracy" in row else ""
        self.bar.write(
            f"epoch {state.epoch:>2}/{state.num_epochs}"
            f"  loss {row['train_loss']:.3f}, val {row['val_loss']:.3f}"
            f"  accuracy {row['val_accuracy']:.1%}{average}"
            f"  {row['seconds']:.0f} s{'  best' if is_praised else ''}"
        )

    def on_fit_end(self, state: TrainingState) -> None:
        self.bar.total = self.bar.n  # a notebook would show an unfinished bar in red
        self.bar.close()


_SECONDS_BETWEEN_READINGS = 0.5
_BAR = "{desc}{percentage:3.0f}%|{bar}| {remaining} left{postfix}"


class LivePlot(Callback):
    """Learning curves that grow in a notebook while the model trains, and a PNG file of them.

    In a live notebook, the first epoch shows the loss of its batches meanwhile.
    """

    only_in_main_process = True

    def __init__(self, path: str | Path | None = None):
        self.path = None if path is None else user_path(path)

    def on_fit_begin(self, state: TrainingState) -> None:
        from IPython.display import HTML, display

        self.display = display(HTML("<i>Curves appear after the first epoch.</i>"), display_id=True)
        self._losses: list[Any] = []  # until it is drawn, a loss may be on the device
        self._sums = dict(state.sums)  # of the batches before a resumed one
        self._next_drawing = time.perf_counter() + _SECONDS_BETWEEN
        if state.rows:
            self._draw(state)

    def on_step_end(self, state: TrainingState) -> None:
        if state.phase == "train" and not state.epochs_done and is_live():
            since = {
                name: state.sums[name] - self._sums.get(name, 0) for name in ("loss", "weight")
            }
            self._sums = dict(state.sums)
            self._losses += [since["loss"] / since["weight"]] if since["weight"] else []
            if (began := time.perf_counter()) > self._next_drawing and self._losses:
                self._losses = [float(loss) for loss in self._losses]
                self._show(_plot_losses(self._losses, state))
                took = time.perf_counter() - began
                self._next_drawing = began + max(_SECONDS_BETWEEN, min(10 * took, 10))

    def on_epoch_end(self, state: TrainingState) -> None:
        self._draw(state)

    def _draw(self, state: TrainingState) -> None:
        labels = _val_labels(state)
        share = largest_class_share(labels) if labels else None
        figure = plot_history(state.history, baseline=share, num_val=len(labels) or None)
        if self.path is not None:
            with suppress(OSError):  # Drive may be gone or full: the run continues
                figure.savefig(self.path)
        self._show(figure)

    def _show(self, figure: "Figure") -> None:
        import matplotlib.pyplot as plt

        plt.close(figure)  # or the end of the cell would show it again
        if self.display is not None:  # outside of notebooks there is no display
            self.display.update(figure)


_SECONDS_BETWEEN = 1.0  # two drawings of batch losses at least; they take a tenth of the time


def _plot_losses(losses: list[float], state: TrainingState) -> "Figure":
    """The loss of each batch of the present epoch."""
    steps = state.steps_per_epoch
    last = range(state.step - len(losses) + 1, state.step + 1)
    with style() as plt:
        figure, ax = plt.subplots(figsize=(9.5, 3.6))
        ax.plot(last, losses, ".-", color=BLUE)
        ax.set(xlabel="batch", ylabel="training loss", ylim=0)
        ax.set_xlim(0.5, (steps["train"] if steps else state.step) + 0.5)
        of_all = f" of {steps['train']}" if steps else ""
        ax.set_title(f"Epoch {state.epoch}, batch {state.step}{of_all}: loss {losses[-1]:.3f}")
    return figure


def _val_labels(state: TrainingState) -> list[int]:
    """The labels of the validation images, where the data set knows them."""
    labels = np.asarray(getattr(state.dataloaders["val"].dataset, "targets", ()))
    return labels.tolist() if labels.ndim == 1 else []


class Tracker(Callback):
    """Logs each epoch's row of the history, and the learning rate of each training step.

    `name` is one that accelerate knows, such as "tensorboard", "wandb" or "mlflow". Its files go
    below `logging_dir`: by default the folder `tracker` of the run, else `runs`. Steps count over
    all epochs; the arguments of `train_model` are logged as well. Raises ParameterError for a name
    that is unknown, or whose package is not installed.
    """

    only_in_main_process = True

    def __init__(self, name: str = "tensorboard", *, logging_dir: str | Path | None = None):
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise ParameterError(
                f"name={name!r} is unknown. Choose one of accelerate's trackers: {known}."
            )
        if name not in map(str, get_available_trackers()):
            raise ParameterError(f"The tracker {name} is not installed: pip install {name}")
        self._tracker_class: Any = LOGGER_TYPE_TO_CLASS[name]
        self.logging_dir = None if logging_dir is None else user_path(logging_dir)

    def on_fit_begin(self, state: TrainingState) -> None:
        self._steps = 0
        project = state.run.folder.name if state.run else "resnet_ft"
        default = state.run.folder / "tracker" if state.run else "runs"
        needs_folder = self._tracker_class.requires_logging_directory
        folder = [str(self.logging_dir or default)] if needs_folder else []
        self.tracker = self._tracker_class(project, *folder)
        if hasattr(self.tracker, "start"):  # older versions of accelerate start at once
            self.tracker.start()
        # One level of names and plain values: {"optimizer_options.lr": 0.0001}.
        (arguments,) = pd.json_normalize(describe_training(state)).to_dict("records")
        plain = {
            name: value if isinstance(value, str | int | float) else str(value)
            for name, value in arguments.items()
        }
        self.tracker.store_init_configuration(plain)

    def on_step_begin(self, state: TrainingState) -> None:
        if state.phase == "train":
            self._steps += 1
            self.tracker.log({"step_learning_rate": state.learning_rate}, step=self._steps)

    def on_epoch_end(self, state: TrainingState) -> None:
        numbers = {name: one for name, one in state.row.items() if isinstance(one, int | float)}
        self.tracker.log(numbers, step=self._steps)

    def on_fit_end(self, state: TrainingState) -> None:
        self.tracker.finish()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
