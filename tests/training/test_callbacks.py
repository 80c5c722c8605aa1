"""Callbacks: when they are called, and what each of the library's own does."""

import fcntl
import math
import os
import re
import signal
import struct
import sys
import termios

import matplotlib.pyplot as plt
import nbformat
import papermill
import pytest
import torch
from conftest import write_image
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from jupyter_client.manager import start_new_kernel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft.data.loaders import make_dataloaders
from resnet_ft.errors import ParameterError
from resnet_ft.training.averaging import WeightAverage
from resnet_ft.training.callbacks import Callback, EarlyStop, LivePlot, Tracker
from resnet_ft.training.loop import train_model
from resnet_ft.training.schedule import PerStep
from resnet_ft.visualize.curves import plot_history


@pytest.fixture
def loaders():
    data = TensorDataset(torch.randn(6, 3, 9, 9), torch.tensor([0, 1] * 3))
    return {phase: DataLoader(data, batch_size=2) for phase in ("train", "val")}


class Note(Callback):
    """Writes what is called, and for whom, into a list."""

    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def on_epoch_begin(self, state):
        self.notes.append(f"{self.name} {state.epoch} begins")

    def on_phase_end(self, state):
        self.notes.append(f"{self.name} {state.phase}")


def test_callbacks_are_called_in_their_order(loaders, small_network):
    notes = []
    train_model(
        small_network, loaders, num_epochs=1, callbacks=[Note("a", notes), Note("b", notes)]
    )
    assert notes == ["a 1 begins", "b 1 begins", "a train", "b train", "a val", "b val"]


def test_a_callback_that_fills_no_hook_does_nothing(loaders, small_network):
    callback = Callback()
    _, history = train_model(small_network, loaders, num_epochs=1, callbacks=[callback])
    assert len(history) == 1
    assert callback.state_dict() == {}


class StopAt(Callback):
    def __init__(self, epoch, step):
        self.at, self.steps = (epoch, step), []

    def on_step_end(self, state):
        self.steps.append(state.phase)
        state.should_stop |= (state.epoch, state.step) == self.at


def test_a_callback_can_end_the_run_mid_epoch_and_the_epoch_is_validated(loaders, small_network):
    stop = StopAt(epoch=2, step=1)
    _, history = train_model(small_network, loaders, num_epochs=5, callbacks=[stop])
    assert stop.steps == ["train"] * 3 + ["val"] * 3 + ["train"] + ["val"] * 3
    assert history["epoch"].tolist() == [1, 2] and history["val_loss"].notna().all()


def test_a_column_that_a_callback_adds_is_kept(loaders, small_network, tmp_path):
    class Add(Callback):
        def on_phase_end(self, state):
            state.row[f"{state.phase}_steps"] = state.step

    _, history = train_model(
        small_network, loaders, num_epochs=2, run_dir=tmp_path, callbacks=[Add()]
    )
    assert history["train_steps"].tolist() == history["val_steps"].tolist() == [3, 3]
    assert "val_steps" in (tmp_path / "history.csv").read_text().splitlines()[0]


class Write(Callback):
    """Puts numbers into a column of the history, epoch by epoch."""

    def __init__(self, column, values):
        self.column, self.values = column, values

    def on_phase_end(self, state):
        state.row[self.column] = self.values[state.epoch - 1]


@pytest.mark.parametrize(
    ("column", "values", "min_delta", "epochs"),
    [
        ("val_loss", [3, 2, 2, 2, 1], 0.0, 4),  # two epochs without a new lowest
        ("val_loss", [3, 2, 4, 1, 2, 3, 0], 0.0, 6),  # a new lowest value restarts the count
        ("val_loss", [3.0, 2.9, 2.7, 2.6], 0.25, 4),  # two small steps add up to one
        ("val_loss", [3.0, 2.9, 2.8, 2.9, 2.9], 0.25, 3),
        ("val_accuracy", [0.5, 0.6, 0.6, 0.5, 0.9], 0.0, 4),
        ("own_accuracy", [0.5, 0.4, 0.3, 0.2], 0.0, 3),
        ("own_loss", [0.5, 0.4, 0.3, 0.2], 0.0, 4),
    ],
)
def test_a_run_ends_when_nothing_has_improved(
    loaders, small_network, column, values, min_delta, epochs
):
    stop = EarlyStop(2, min_delta=min_delta, metric=column)
    callbacks = [Write(column, values), stop]
    _, history = train_model(small_network, loaders, num_epochs=len(values), callbacks=callbacks)
    assert len(history) == epochs


def test_early_stop_resumes_its_count(loaders, small_network):
    first = EarlyStop(3)
    train_model(
        small_network, loaders, num_epochs=2, callbacks=[Write("val_loss", [1.0, 2.0]), first]
    )

    class Resume(Callback):
        def on_fit_begin(self, state):
            second.load_state_dict(first.state_dict())

    second = EarlyStop(3)
    callbacks = [Write("val_loss", [1.5, 1.5, 1.5]), second, Resume()]
    _, history = train_model(small_network, loaders, num_epochs=3, callbacks=callbacks)
    assert len(history) == 2  # after one epoch without improvement in the first run


def test_early_stop_counts_from_zero_in_every_run(loaders, small_network):
    stop = EarlyStop(1)
    for values in ([1.0, 2.0, 0.0], [4.0, 3.0, 3.0]):
        callbacks = [Write("val_loss", values), stop]
        _, history = train_model(small_network, loaders, num_epochs=3, callbacks=callbacks)
    assert len(history) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"patience": 0}, "patience=0"), ({"metric": "seconds"}, "loss or in accuracy")],
)
def test_early_stop_refuses_options_that_stop_nothing(options, message):
    with pytest.raises(ParameterError, match=message):
        EarlyStop(**options)


def test_early_stop_names_the_columns_where_its_metric_is_none(loaders, small_network):
    stop = EarlyStop(metric="val_los_loss")
    with pytest.raises(ParameterError, match=r"val_los_loss.*train_loss.*val_accuracy"):
        train_model(small_network, loaders, num_epochs=1, callbacks=[stop])


def test_progress_prints_a_line_per_epoch(loaders, small_network, capsys):
    train_model(small_network, loaders, num_epochs=2)
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert [line[:10] for line in lines] == ["epoch  1/2", "epoch  2/2"]
    assert re.fullmatch(
        r"epoch  1/2  loss \d\.\d{3}, val \d\.\d{3}  accuracy \d+\.\d%  \d+ s  best", lines[0]
    )
    assert "average" not in lines[0]
    assert output.err == ""  # no bar where there is no terminal


@pytest.mark.parametrize(("learning_rate", "is_praised"), [(0.0, False), (0.03, True)])
def test_a_model_that_guesses_is_not_praised(photos, capsys, learning_rate, is_praised, tmp_path):
    for i in range(20):
        for name, colour in (("blue", (40, 60, 200)), ("red", (200, 60, 40))):
            write_image(photos / "Val" / name / f"more{i}.png", colour=colour)
    loaders = make_dataloaders(photos, image_size=9, batch_size=4, num_workers=0)
    model = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2)
    )
    torch.nn.init.zeros_(model[2].weight)  # always the same class
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    plot = LivePlot(tmp_path / "history.png")
    _, history = train_model(model, loaders, optimizer=optimizer, num_epochs=1, callbacks=[plot])
    line = capsys.readouterr().out.splitlines()[-1]
    assert "  accuracy " in line and line.endswith("  best") == is_praised
    assert (history["val_accuracy"][0] > 0.9) == is_praised
    expected = plot_history(history, baseline=0.5, num_val=46)  # 23 of each class
    expected.savefig(tmp_path / "expected.png")
    assert (tmp_path / "history.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_the_line_has_the_accuracy_of_averaged_weights(loaders, small_network, capsys):
    _, history = train_model(small_network, loaders, num_epochs=1, callbacks=[WeightAverage()])
    (line,) = capsys.readouterr().out.splitlines()
    accuracy = history["ema_val_accuracy"][0]
    assert f", average {accuracy:.1%}" in line


def test_the_longest_usual_line_fits_80_columns(small_network, loaders, capsys):
    class Long(Callback):
        def on_phase_end(self, state):
            state.row |= {"train_loss": 0.1234, "val_loss": 0.1234, "val_accuracy": 1.0}
            state.row |= {"ema_val_accuracy": 1.0}
            state.epoch_began -= 400

    train_model(small_network, loaders, num_epochs=10, callbacks=[Long()])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "800 s  best" in lines[0]


def shown_in_a_terminal(action, patch):
    """What standard error has to show while an action runs, if it is a terminal."""
    reading, writing = os.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # lines, columns
    with open(writing, "w") as stream, patch.context() as during:
        during.setattr(sys, "stderr", stream)
        action()
        stream.write("\n")
        stream.flush()
        with open(reading, newline="\n") as screen:  # a bar has no line ends of its own
            return screen.readline()


def test_in_a_terminal_a_bar_fills_up_even_if_the_run_ends_early(
    loaders, small_network, monkeypatch
):
    def run():
        train_model(small_network, loaders, num_epochs=100, callbacks=[StopAt(2, 1)])

    shown = shown_in_a_terminal(run, monkeypatch)
    assert "epoch 1/100, batch 0/3:   0%|" in shown and "left, loss 0." in shown
    # After 3 + 3 batches and one more, validation remains: 1 + 3.
    assert "epoch 2/100, val batch 0/3:  70%|" in shown
    assert shown.endswith(" \r\r\n")  # the bar is cleared away


TRAIN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from resnet_ft import Callback, train_model

class Stop(Callback):
    def on_epoch_end(self, state):
        state.should_stop = True

data = TensorDataset(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))
loaders = {phase: DataLoader(data, batch_size=2) for phase in ("train", "val")}
model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
_ = train_model(model, loaders, num_epochs=3, callbacks=[Stop()])
"""


@pytest.mark.slow
def test_a_notebook_that_papermill_runs_shows_the_line_alone(tmp_path):
    cells = [nbformat.v4.new_code_cell(TRAIN)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "in.ipynb")
    executed = papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", progress_bar=False
    )
    (output,) = executed.cells[0].outputs
    assert output.text.startswith("epoch  1/3 ") and output.text.count("\n") == 1


def test_a_live_notebook_shows_a_bar_that_disappears_at_the_end():
    messages = []
    manager, client = start_new_kernel()
    try:
        # As JupyterLab and Colab do: the kernel may ask its user for input.
        client.execute_interactive(TRAIN, allow_stdin=True, output_hook=messages.append)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    shown = [m["content"]["data"] for m in messages if m["msg_type"] == "display_data"]
    assert ["application/vnd.jupyter.widget-view+json" in data for data in shown] == [True]
    assert "comm_close" in [m["msg_type"] for m in messages]
    assert "danger" not in str(messages)  # the colour of an unfinished bar
    assert "row wrap" in str(messages)  # for a narrow screen


@pytest.fixture
def notebook():
    """IPython as a notebook has it, and what it displays."""
    InteractiveShell.instance()
    yield capture_output()
    InteractiveShell.clear_instance()


def test_the_plot_grows_in_one_place_and_is_saved(notebook, loaders, small_network, tmp_path):
    plot = LivePlot(tmp_path / "history.png")
    with notebook as captured:
        train_model(small_network, loaders, num_epochs=3, callbacks=[plot])
    assert [shown.update for shown in captured.outputs] == [False, True, True, True]
    assert len({shown.transient["display_id"] for shown in captured.outputs}) == 1
    assert (tmp_path / "history.png").read_bytes()[1:4] == b"PNG"
    assert not plt.get_fignums()


def test_outside_a_notebook_the_plot_is_saved_too(loaders, small_network, tmp_path):
    plot = LivePlot(tmp_path / "history.png")
    train_model(small_network, loaders, num_epochs=1, callbacks=[plot])
    assert (tmp_path / "history.png").exists()


def test_the_bar_and_the_plot_show_the_loss_of_batches_as_it_is(
    notebook, loaders, small_network, monkeypatch
):
    monkeypatch.setattr("resnet_ft.training.callbacks._SECONDS_BETWEEN", 0.0)
    losses = []

    class Losses(Callback):
        def on_step_end(self, state):
            if state.phase == "train":
                losses.append(state.output.loss.item())
            plot._next_drawing = 0  # as if time had passed

    plot = LivePlot()
    with notebook as captured:
        train_model(small_network, loaders, num_epochs=2, callbacks=[plot, Losses()])
    assert plot._losses == pytest.approx(losses[:3])  # of the first epoch
    assert len(captured.outputs) == 1 + 3 + 2  # the place, three batches, two epochs
    assert not plt.get_fignums()


def test_where_a_program_runs_the_notebook_batches_are_not_drawn(
    notebook, loaders, small_network, monkeypatch
):
    monkeypatch.setattr("resnet_ft.training.callbacks._SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr("resnet_ft.training.callbacks.is_live", lambda: False)
    with notebook as captured:
        train_model(small_network, loaders, num_epochs=1, callbacks=[LivePlot()])
    assert len(captured.outputs) == 2


class HeadAlone(Callback):
    def on_fit_begin(self, state):
        scores = {"loss": 0.7, "accuracy": 0.5}
        row = {f"{phase}_{name}": scores[name] for phase in ("train", "val") for name in scores}
        state.rows.append({"epoch": 0, **row, "seconds": 2.0})


def test_the_plot_begins_with_the_head_alone_and_takes_more_columns(
    loaders, small_network, tmp_path
):
    plot = LivePlot(tmp_path / "history.png")
    _, history = train_model(
        small_network, loaders, num_epochs=2, callbacks=[HeadAlone(), WeightAverage(), plot]
    )
    assert history["epoch"].tolist() == [0, 1, 2]
    assert (tmp_path / "history.png").exists()


def events_in(folder):
    (file,) = folder.glob("events.*")
    events = EventAccumulator(str(file))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_has_the_history_and_the_learning_rate_of_every_step(
    loaders, small_network, tmp_path
):
    optimizer = torch.optim.SGD(small_network.parameters(), lr=0.5)
    scheduler = PerStep(ExponentialLR(optimizer, gamma=0.5))
    _, history = train_model(
        small_network,
        loaders,
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=2,
        run_dir=tmp_path / "ants",
        callbacks=[WeightAverage(), Tracker("tensorboard")],
    )
    events = events_in(tmp_path / "ants" / "tracker" / "ants")
    rates = events.pop("step_learning_rate")
    assert rates == [(step, 0.5**step) for step in range(1, 7)]  # what each of them trained with
    assert set(events) == set(history) and "ema_val_loss" in events
    for column, points in events.items():
        assert [step for step, _ in points] == [3, 6]  # three steps per epoch
        assert [value for _, value in points] == pytest.approx(history[column].tolist())


def test_the_arguments_of_the_run_are_logged_as_plain_values(loaders, small_network, tmp_path):
    tracker = Tracker("tensorboard", logging_dir=tmp_path / "logs")
    train_model(small_network, loaders, num_epochs=1, callbacks=[tracker])
    (file,) = (tmp_path / "logs" / "resnet_ft").glob("*/hparams.yml")
    kept = dict(line.split(": ", 1) for line in file.read_text().splitlines())
    assert kept["optimizer"] == "Adam" and kept["num_epochs"] == "1"
    assert kept["optimizer_options.lr"] == "0.0001" and kept["images.train"] == "6"


def test_without_a_run_dir_the_events_go_to_runs(loaders, small_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_model(small_network, loaders, num_epochs=1, callbacks=[Tracker()])
    assert events_in(tmp_path / "runs" / "resnet_ft")["epoch"] == [(3, 1)]


def test_an_interrupted_run_has_logged_what_it_did(loaders, small_network, tmp_path):
    class Interrupt(Callback):
        def on_step_end(self, state):
            if state.epoch == 2:
                raise KeyboardInterrupt

    callbacks = [Tracker(logging_dir=tmp_path), Interrupt()]
    with pytest.raises(KeyboardInterrupt):
        train_model(small_network, loaders, num_epochs=3, callbacks=callbacks)
    events = events_in(tmp_path / "resnet_ft")
    assert [step for step, _ in events["step_learning_rate"]] == [1, 2, 3, 4]
    assert math.isfinite(events["val_loss"][0][1]) and len(events["val_loss"]) == 1


def test_a_resumed_tracker_continues_to_count_steps(loaders, small_network, tmp_path):
    first, second = (Tracker(logging_dir=tmp_path / name) for name in ("first", "second"))
    train_model(small_network, loaders, num_epochs=1, callbacks=[first])

    class Resume(Callback):
        def on_fit_begin(self, state):
            second.load_state_dict(first.state_dict())

    train_model(small_network, loaders, num_epochs=1, callbacks=[second, Resume()])
    events = events_in(tmp_path / "second" / "resnet_ft")
    assert [step for step, _ in events["step_learning_rate"]] == [4, 5, 6]


def test_an_unknown_tracker_is_refused_with_the_known_ones():
    with pytest.raises(ParameterError, match=r"tensorbord.*tensorboard, .*wandb"):
        Tracker("tensorbord")


def test_a_tracker_that_is_not_installed_is_refused_with_the_command():
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    missing = sorted(set(LOGGER_TYPE_TO_CLASS) - {str(name) for name in get_available_trackers()})
    if not missing:
        pytest.skip("every tracker is installed here")
    with pytest.raises(ParameterError, match=f"pip install {missing[0]}"):
        Tracker(missing[0])


class Fails(Callback):
    """Fails in one hook, as a tracker does whose server is gone."""

    def __init__(self, *hooks):
        for hook in hooks:
            setattr(self, hook, self.fail)

    def fail(self, state):
        raise ConnectionError("the server is gone")


class Ended(Callback):
    """Notes that it was ended."""

    count = 0

    def on_fit_end(self, state):
        self.count += 1


@pytest.mark.parametrize("hook", ["on_fit_begin", "on_epoch_end", "on_fit_end"])
def test_a_callback_that_fails_keeps_no_other_from_ending(loaders, tmp_path, small_network, hook):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    before, after = Ended(), Ended()
    callbacks = [before, Fails(hook), after]
    with pytest.raises(ConnectionError):
        train_model(
            small_network, loaders, num_epochs=1, run_dir=tmp_path / "run", callbacks=callbacks
        )
    assert before.count == 1 and after.count == (hook != "on_fit_begin")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    train_model(small_network, loaders, num_epochs=1, run_dir=tmp_path / "other")


def test_what_stopped_the_run_is_raised_even_if_callbacks_fail_then(loaders, small_network):
    class Stop(Callback):
        def on_step_end(self, state):
            raise KeyboardInterrupt

    callbacks = [Fails("on_interrupt", "on_fit_end"), Stop(), ended := Ended()]
    with (
        pytest.warns(UserWarning, match="failed as well: ConnectionError"),
        pytest.raises(KeyboardInterrupt),
    ):
        train_model(small_network, loaders, num_epochs=1, callbacks=callbacks)
    assert ended.count == 1
