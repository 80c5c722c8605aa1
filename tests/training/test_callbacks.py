import matplotlib.pyplot as plt
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft import LivePlot, train_model


@pytest.fixture
def loaders():
    data = TensorDataset(torch.randn(6, 3, 9, 9), torch.tensor([0, 1] * 3))
    return {phase: DataLoader(data, batch_size=3) for phase in ("train", "val")}


def test_progress_says_every_epoch_in_a_line(loaders, small_network, capsys):
    train_model(small_network, loaders, num_epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:10] for line in lines] == ["epoch  1/2", "epoch  2/2"]
    assert "val: loss" in lines[0] and lines[0].endswith("best so far")


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
