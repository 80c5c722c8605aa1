"""Errors in a live notebook are one sentence; the traceback is there for those who ask."""

import nbformat
import papermill
import pytest
from jupyter_client.manager import start_new_kernel

from resnet_ft import ParameterError

FAILS = 'from resnet_ft import freeze\nimport torch\nfreeze(torch.nn.Linear(1, 1), until="fc9")'


@pytest.fixture(scope="module")
def live():
    """Runs a cell as JupyterLab and Colab do, and returns the errors that it shows."""
    manager, client = start_new_kernel()

    def run(cell):
        messages = []
        client.execute_interactive(cell, allow_stdin=True, output_hook=messages.append)
        run.output = "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")
        return [m["content"] for m in messages if m["msg_type"] == "error"]

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_a_live_notebook_shows_the_sentence_alone_and_the_traceback_on_demand(live):
    (error,) = live(FAILS)
    assert error["ename"] == "ParameterError" and "fc9" in error["evalue"]
    assert "\n".join(error["traceback"]).splitlines() == [
        f"\x1b[31mParameterError\x1b[0m: {error['evalue']}",
        "",
        "For the traceback, run %tb in a new cell.",
    ]
    (full,) = live("%tb")
    text = "\n".join(full["traceback"])
    assert "Traceback" in text and "freezing.py" in text and error["evalue"][:20] in text
    assert "freezing.py" in "\n".join(live("%tb")[0]["traceback"])
    assert len(live(FAILS)[0]["traceback"]) == 2  # a new error is short again


def test_other_errors_keep_their_traceback(live):
    (error,) = live("1 / 0")
    assert "Traceback" in "\n".join(error["traceback"])


INTERRUPTED = """
import signal, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from resnet_ft import Callback, train_model

class Interrupt(Callback):
    def on_step_end(self, state):
        if state.epoch == 2:
            signal.raise_signal(signal.SIGINT)

data = TensorDataset(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))
loaders = {phase: DataLoader(data, batch_size=2) for phase in ("train", "val")}
model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
train_model(model, loaders, num_epochs=3, run_dir=%r, callbacks=[Interrupt()])
"""


def test_an_interrupted_run_says_once_where_it_was_saved(live, tmp_path):
    (error,) = live(INTERRUPTED % str(tmp_path))
    said = "interrupted; saved at epoch 2, train step 1. Run it again to resume."
    assert error["ename"] == "RunInterrupted" and error["evalue"].endswith(said)
    assert len(error["traceback"]) == 1 and "interrupted" not in live.output
    assert "loop.py" in "\n".join(live("%tb")[0]["traceback"])


def test_papermill_keeps_the_traceback(tmp_path):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(FAILS)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "in.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match=r"freezing\.py") as raised:
        papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "o.ipynb", progress_bar=False)
    assert raised.value.ename == "ParameterError" and "fc9" in raised.value.evalue


def test_outside_of_ipython_an_error_renders_as_python_prints_it(monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    try:
        raise ParameterError("No.")
    except ParameterError as error:
        text = "".join(error._render_traceback_())
    assert text.startswith("Traceback") and text.endswith("ParameterError: No.\n")
