import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft.errors import ParameterError
from resnet_ft.training.averaging import WeightAverage
from resnet_ft.training.callbacks import Callback, Tracker
from resnet_ft.training.loop import train_model
from resnet_ft.training.schedule import PerStep


@pytest.fixture
def loaders():
    data = TensorDataset(torch.randn(6, 3, 9, 9), torch.tensor([0, 1] * 3))
    return {phase: DataLoader(data, batch_size=2) for phase in ("train", "val")}


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
        assert [step for step, _ in points] == [3, 6]  # three steps an epoch
        assert [value for _, value in points] == pytest.approx(history[column].tolist())


def test_what_the_run_was_started_with_is_kept_as_plain_values(loaders, small_network, tmp_path):
    tracker = Tracker("tensorboard", logging_dir=tmp_path / "logs")
    train_model(small_network, loaders, num_epochs=1, callbacks=[tracker])
    (file,) = (tmp_path / "logs" / "resnet_ft").glob("*/hparams.yml")
    kept = dict(line.split(": ", 1) for line in file.read_text().splitlines())
    assert kept["optimizer"] == "Adam" and kept["num_epochs"] == "1"
    assert kept["optimizer_options.lr"] == "0.0001" and kept["images.train"] == "6"


def test_without_a_run_folder_the_events_go_to_runs(loaders, small_network, tmp_path, monkeypatch):
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


def test_a_resumed_run_counts_its_steps_on(loaders, small_network, tmp_path):
    first, second = (Tracker(logging_dir=tmp_path / name) for name in ("first", "second"))
    train_model(small_network, loaders, num_epochs=1, callbacks=[first])

    class Resume(Callback):
        def on_fit_begin(self, state):
            second.load_state_dict(first.state_dict())

    train_model(small_network, loaders, num_epochs=1, callbacks=[second, Resume()])
    events = events_in(tmp_path / "second" / "resnet_ft")
    assert [step for step, _ in events["step_learning_rate"]] == [4, 5, 6]


def test_an_unknown_tracker_is_answered_with_those_there_are():
    with pytest.raises(ParameterError, match=r"tensorbord.*tensorboard, .*wandb"):
        Tracker("tensorbord")


def test_a_tracker_that_is_not_installed_is_answered_with_the_command():
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    missing = sorted(set(LOGGER_TYPE_TO_CLASS) - {str(name) for name in get_available_trackers()})
    if not missing:
        pytest.skip("every tracker is installed here")
    with pytest.raises(ParameterError, match=f"pip install {missing[0]}"):
        Tracker(missing[0])
