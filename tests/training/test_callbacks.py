import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft import Callback, train_model


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


def test_callbacks_are_called_one_after_the_other_in_their_order(loaders, small_network):
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
        if (state.epoch, state.step) == self.at:
            state.should_stop = True


def test_a_callback_can_end_the_run_amid_an_epoch_which_is_validated(loaders, small_network):
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
