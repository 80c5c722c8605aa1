import matplotlib.pyplot as plt
import pytest
import torch
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


def test_the_plot_grows_in_one_place_and_is_kept_as_a_file(
    loaders, small_network, tmp_path, monkeypatch
):
    import IPython.display

    shown, updates = [], []

    class Handle:
        def update(self, figure):
            updates.append(len(figure.axes[0].lines[0].get_xdata()))

    def display(content, display_id=False):
        shown.append(content)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    train_model(
        small_network, loaders, num_epochs=3, callbacks=[LivePlot(tmp_path / "history.png")]
    )
    assert len(shown) == 1
    assert updates == [1, 2, 3]
    assert (tmp_path / "history.png").read_bytes()[1:4] == b"PNG"
    assert not plt.get_fignums()
