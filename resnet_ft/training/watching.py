"""What watches a run: a progress bar, a plot that grows."""

from contextlib import suppress
from pathlib import Path

from resnet_ft.progress import progress_bar
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.state import TrainingState
from resnet_ft.visualize.plots import plot_history


class ProgressBar(Callback):
    """One bar for the whole run, with the time left, and a line for every epoch.

    Where nobody watches it (a log file, CI, a notebook that papermill runs), the lines alone.
    """

    only_in_main_process = True

    def on_fit_begin(self, state: TrainingState) -> None:
        self.bar = progress_bar(total=_total_steps(state), unit="batch")

    def on_phase_begin(self, state: TrainingState) -> None:
        if state.should_stop and state.steps_per_epoch:
            self.bar.total = self.bar.n + state.steps_per_epoch[state.phase]
        self.bar.set_description(f"epoch {state.epoch}/{state.num_epochs} {state.phase}")

    def on_step_end(self, state: TrainingState) -> None:
        self.bar.update()

    def on_epoch_end(self, state: TrainingState) -> None:
        row = state.rows[-1]
        average = f" (average {row['ema_val_accuracy']:.1%})" if "ema_val_accuracy" in row else ""
        self.bar.write(
            f"epoch {state.epoch:>2}/{state.num_epochs}"
            f"   train: loss {row['train_loss']:.3f}, accuracy {row['train_accuracy']:6.1%}"
            f"   val: loss {row['val_loss']:.3f}, accuracy {row['val_accuracy']:6.1%}{average}"
            f"   {row['seconds']:.0f} s{'   best so far' if state.is_best else ''}"
        )

    def on_fit_end(self, state: TrainingState) -> None:
        self.bar.total = self.bar.n  # a notebook leaves a bar that did not get to its end, in red
        self.bar.close()


class LivePlot(Callback):
    """Learning curves that grow in a notebook while the model trains, and a PNG file of them."""

    only_in_main_process = True

    def __init__(self, path: str | Path | None = None):
        self.path = path

    def on_fit_begin(self, state: TrainingState) -> None:
        from IPython.display import HTML, display

        self.display = display(HTML("<i>Curves appear after the first epoch.</i>"), display_id=True)

        if state.rows:
            self._draw(state)

    def on_epoch_end(self, state: TrainingState) -> None:
        self._draw(state)

    def _draw(self, state: TrainingState) -> None:
        import matplotlib.pyplot as plt

        figure = plot_history(state.history)
        if self.path is not None:
            with suppress(OSError):  # Drive may be gone or full: the run goes on
                figure.savefig(self.path)
        plt.close(figure)  # it is shown here, not once more at the end of the cell
        if self.display is not None:  # there is no place to draw in outside of a notebook
            self.display.update(figure)


def _total_steps(state: TrainingState) -> int | None:
    steps = state.steps_per_epoch
    return steps and state.num_epochs * sum(steps.values())
