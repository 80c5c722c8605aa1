"""A batch that does not fit into memory."""

import pytest
import torch
from conftest import tensors
from torch import nn
from torch.utils.data import DataLoader

from resnet_ft import Callback, Run, TrainingError, engine, train_model


class Narrow(nn.Module):
    """A network that has room for so many images at once, and notes how many it was given."""

    def __init__(self, room):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(243, 16), nn.ReLU(), nn.Linear(16, 2))
        self.room, self.seen = room, []

    def forward(self, images):
        self.seen.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.layers(images)


def train(room, run_dir=None, *, num_epochs=2, **options):
    torch.manual_seed(0)
    model = Narrow(room)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loaders = {
        "train": DataLoader(tensors(22, 0), batch_size=8),
        "val": DataLoader(tensors(9, 1), batch_size=9),
    }
    return train_model(
        model, loaders, optimizer=optimizer, num_epochs=num_epochs, run_dir=run_dir, **options
    )


@pytest.mark.parametrize("room", [4, 3, 1])
def test_a_batch_that_is_too_large_gives_the_same_steps_in_parts(room):
    expected, whole = train(room=99)
    with pytest.warns(UserWarning, match=r"8 images at once.*in \d micro-batches"):
        model, history = train(room)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)
    for column in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert history[column].tolist() == pytest.approx(whole[column].tolist(), rel=1e-5)


def test_parts_that_are_asked_for_give_the_same_steps_without_a_failure(monkeypatch):
    expected, whole = train(room=99)
    monkeypatch.setattr(engine.accelerator(), "gradient_accumulation_steps", 2)
    model, history = train(room=5)
    assert max(model.seen) == 5
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)
    assert history["val_loss"].tolist() == pytest.approx(whole["val_loss"].tolist(), rel=1e-5)


def test_the_number_of_micro_batches_is_kept_for_the_rest_of_the_run_and_when_it_resumes(tmp_path):
    with pytest.warns(UserWarning, match="in 2 micro-batches"):
        model, _ = train(4, tmp_path / "run")
    # A trial; 8 did not fit; then all batches in halves: 8, 8, 6 and, in validation, 9 as 5 and 4.
    assert model.seen[:9] == [1, 8, 4, 4, 4, 4, 3, 3, 5]
    model, _ = train(4, tmp_path / "run", num_epochs=3)
    assert max(model.seen) <= 5 and Run(tmp_path / "run").resume_state()[1]["progress"]


def test_a_single_image_that_is_too_large_is_an_error_that_names_the_remedy():
    with (
        pytest.warns(UserWarning, match="in 8 micro-batches"),
        pytest.raises(TrainingError, match=r"[Aa] single image.*smaller image_size"),
    ):
        train(0)


def test_weights_move_once_a_batch_also_in_parts():
    class Count(Callback):
        steps = 0

        def on_step_end(self, state):
            self.steps += state.phase == "train"

    count = Count()
    with pytest.warns(UserWarning, match="micro-batches"):
        train(2, callbacks=[count])
    assert count.steps == 2 * 3
