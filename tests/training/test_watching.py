import fcntl
import os
import struct
import sys
import termios

import matplotlib.pyplot as plt
import nbformat
import papermill
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from jupyter_client.manager import start_new_kernel
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft.training.averaging import WeightAverage
from resnet_ft.training.callbacks import Callback, LivePlot
from resnet_ft.training.loop import train_model


@pytest.fixture
def loaders():
    data = TensorDataset(torch.randn(6, 3, 9, 9), torch.tensor([0, 1] * 3))
    return {phase: DataLoader(data, batch_size=3) for phase in ("train", "val")}


def test_progress_says_every_epoch_in_a_line(loaders, small_network, capsys):
    train_model(small_network, loaders, num_epochs=2)
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert [line[:10] for line in lines] == ["epoch  1/2", "epoch  2/2"]
    assert "val: loss" in lines[0] and lines[0].endswith("best so far")
    assert "average" not in lines[0]
    assert output.err == ""  # no bar where there is no terminal


def test_the_line_has_the_accuracy_of_averaged_weights_where_there_are(
    loaders, small_network, capsys
):
    _, history = train_model(small_network, loaders, num_epochs=1, callbacks=[WeightAverage()])
    (line,) = capsys.readouterr().out.splitlines()
    accuracy = history["ema_val_accuracy"][0]
    assert f"(average {accuracy:.1%})" in line and len(line) < 140


class StopAt(Callback):
    def __init__(self, epoch, step):
        self.at = (epoch, step)

    def on_step_end(self, state):
        state.should_stop |= (state.epoch, state.step) == self.at


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


def test_in_a_terminal_a_bar_fills_up_also_where_a_run_ends_early(
    loaders, small_network, monkeypatch
):
    def run():
        train_model(small_network, loaders, num_epochs=100, callbacks=[StopAt(2, 1)])

    shown = shown_in_a_terminal(run, monkeypatch)
    assert "0/400" in shown and "epoch 1/100 train:" in shown and "epoch 2/100 val:" in shown
    assert "| 5/7 " in shown  # validation remains: 2 + 2 batches, then 1 + 2
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


def test_in_a_notebook_that_papermill_runs_there_is_the_line_alone(tmp_path):
    cells = [nbformat.v4.new_code_cell(TRAIN)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "in.ipynb")
    executed = papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", progress_bar=False
    )
    (output,) = executed.cells[0].outputs
    assert output.text.startswith("epoch  1/3 ") and output.text.count("\n") == 1


def test_in_a_live_notebook_there_is_a_bar_that_goes_away_in_the_end():
    messages = []
    manager, client = start_new_kernel()
    try:
        # As JupyterLab and Colab ask for it: the kernel may turn to its user.
        client.execute_interactive(TRAIN, allow_stdin=True, output_hook=messages.append)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    shown = [m["content"]["data"] for m in messages if m["msg_type"] == "display_data"]
    assert ["application/vnd.jupyter.widget-view+json" in data for data in shown] == [True]
    assert "comm_close" in [m["msg_type"] for m in messages]
    assert "danger" not in str(messages)  # the colour of a bar that did not get to its end


@pytest.fixture
def notebook():
    """IPython as a notebook has it, and what it displays."""
    InteractiveShell.instance()
    yield capture_output()
    InteractiveShell.clear_instance()


def test_the_plot_grows_in_one_place_and_is_kept_as_a_file(
    notebook, loaders, small_network, tmp_path
):
    plot = LivePlot(tmp_path / "history.png")
    with notebook as captured:
        train_model(small_network, loaders, num_epochs=3, callbacks=[plot])
    assert [shown.update for shown in captured.outputs] == [False, True, True, True]
    assert len({shown.transient["display_id"] for shown in captured.outputs}) == 1
    assert (tmp_path / "history.png").read_bytes()[1:4] == b"PNG"
    assert not plt.get_fignums()


def test_outside_of_a_notebook_the_plot_is_kept_as_a_file_all_the_same(
    loaders, small_network, tmp_path
):
    plot = LivePlot(tmp_path / "history.png")
    train_model(small_network, loaders, num_epochs=1, callbacks=[plot])
    assert (tmp_path / "history.png").exists()


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
