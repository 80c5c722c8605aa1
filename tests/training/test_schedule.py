import time

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset, default_collate

from resnet_ft import engine
from resnet_ft.errors import ParameterError
from resnet_ft.training.budget import TimeBudget
from resnet_ft.training.callbacks import Callback, EarlyStop
from resnet_ft.training.loop import train_model
from resnet_ft.training.schedule import PerStep, warmup_cosine

STEP = 0.03  # seconds that a batch takes in the tests of time


def loaders_of(train_steps, val_steps, seconds=0.0):
    def collate(samples):
        time.sleep(seconds)
        return default_collate(samples)

    def loader(steps):
        data = TensorDataset(torch.randn(2 * steps, 3, 9, 9), torch.tensor([0, 1] * steps))
        return DataLoader(data, batch_size=2, collate_fn=collate)

    return {"train": loader(train_steps), "val": loader(val_steps)}


@pytest.fixture
def loaders():
    return loaders_of(train_steps=3, val_steps=2)


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
        ("val_loss", [3, 2, 4, 1, 2, 3, 0], 0.0, 6),  # a new lowest begins the count anew
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


def test_early_stop_goes_on_from_what_it_kept(loaders, small_network):
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


def test_early_stop_begins_anew_with_every_run(loaders, small_network):
    stop = EarlyStop(1)
    for values in ([1.0, 2.0, 0.0], [4.0, 3.0, 3.0]):
        callbacks = [Write("val_loss", values), stop]
        _, history = train_model(small_network, loaders, num_epochs=3, callbacks=callbacks)
    assert len(history) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"patience": 0}, "patience=0"), ({"metric": "seconds"}, "loss or in accuracy")],
)
def test_options_that_stop_nothing_are_refused(options, message):
    with pytest.raises(ParameterError, match=message):
        EarlyStop(**options)


def test_a_metric_that_is_no_column_is_named_with_those_there_are(loaders, small_network):
    stop = EarlyStop(metric="val_los_loss")
    with pytest.raises(ParameterError, match=r"val_los_loss.*train_loss.*val_accuracy"):
        train_model(small_network, loaders, num_epochs=1, callbacks=[stop])


class Watch(Callback):
    """Keeps the progress and the learning rate of every training step, and when an epoch ended.

    The end of the run is not what counts here: accelerate then collects garbage for half a second,
    however long the run was.
    """

    def __init__(self, budget):
        self.budget, self.progress, self.learning_rates = budget, [], []

    def on_step_begin(self, state):
        if state.phase == "train":
            self.progress.append(self.budget.progress)
            self.learning_rates.append(state.learning_rate)

    def on_epoch_end(self, state):
        self.ended = time.perf_counter()


@pytest.fixture
def quick_network():
    """A network that takes next to no time, and an Accelerator, which takes seconds to make."""
    engine.device()
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 9, 2))


def test_a_run_of_many_epochs_keeps_its_time_and_a_schedule_follows_it(quick_network):
    started = time.perf_counter()
    time.sleep(0.6)  # work before training
    budget = TimeBudget(minutes=3 / 60, started=started)
    optimizer = torch.optim.SGD(quick_network.parameters(), lr=0.1)
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(budget.progress))
    watch = Watch(budget)
    _, history = train_model(
        quick_network,
        loaders_of(train_steps=12, val_steps=5, seconds=STEP),
        optimizer=optimizer,
        scheduler=PerStep(schedule),
        num_epochs=1000,
        callbacks=[watch, budget],
    )
    assert 0.9 * 3 < watch.ended - started < 1.1 * 3
    assert len(history) > 2
    assert watch.progress[0] < 0.1 and 0.85 < watch.progress[-1] <= 1
    assert watch.learning_rates[0] < 0.01
    assert max(watch.learning_rates) > 0.095 and watch.learning_rates[-1] < 0.005


def test_a_budget_shorter_than_an_epoch_stops_amid_it_and_validates(quick_network):
    loaders = loaders_of(train_steps=100, val_steps=4, seconds=STEP)
    started = time.perf_counter()
    watch = Watch(budget := TimeBudget(minutes=1 / 60, started=started))
    _, history = train_model(quick_network, loaders, num_epochs=3, callbacks=[watch, budget])
    # The first validation is reckoned at half of what it takes here: 0.06 s too little.
    assert 0.9 < watch.ended - started < 1.1
    assert len(history) == 1 and history["val_accuracy"].notna().all()
    assert 15 < len(watch.progress) < 33


class Rest(Callback):
    """What callbacks do after a validation."""

    def __init__(self, seconds):
        self.seconds = seconds

    def on_phase_end(self, state):
        if state.phase == "val":
            time.sleep(self.seconds)


def test_a_validation_takes_as_long_as_the_one_before(quick_network):
    started = time.perf_counter()
    watch = Watch(budget := TimeBudget(minutes=2 / 60, started=started))
    _, history = train_model(
        quick_network,
        loaders_of(train_steps=25, val_steps=1, seconds=STEP),
        num_epochs=9,
        callbacks=[Rest(0.4), watch, budget],
    )
    assert 0.9 * 2 < watch.ended - started < 1.1 * 2
    assert len(history) == 2 and 25 < len(watch.progress) < 50


def test_no_epoch_begins_without_time_for_a_step(quick_network):
    budget = TimeBudget(minutes=0.8 / 60)
    loaders = loaders_of(train_steps=4, val_steps=1, seconds=STEP)
    _, history = train_model(quick_network, loaders, num_epochs=9, callbacks=[Rest(0.5), budget])
    assert len(history) == 1


def test_the_least_budget_still_gives_a_model(loaders, small_network):
    budget = TimeBudget(minutes=1e-9)
    assert budget.progress == 0
    _, history = train_model(small_network, loaders, num_epochs=3, callbacks=[budget])
    assert len(history) == 1 and budget.progress == 1


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_a_budget_that_is_none_is_refused(minutes):
    with pytest.raises(ParameterError, match="minutes"):
        TimeBudget(minutes)


def test_a_scheduler_is_stepped_after_every_training_step_and_kept(loaders, small_network):
    optimizer = torch.optim.SGD(small_network.parameters(), lr=1.0)
    scheduler = PerStep(torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5))
    _, history = train_model(small_network, loaders, None, optimizer, scheduler, 2)
    assert history["learning_rate"].tolist() == [1, 0.5**3]  # three steps an epoch
    other = PerStep(torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1))
    other.load_state_dict(scheduler.state_dict())
    assert other.scheduler.last_epoch == 6 and other.scheduler.gamma == 0.5


def test_the_learning_rate_rises_linearly_and_falls_along_half_a_cosine():
    assert warmup_cosine(0) == 0.01
    assert warmup_cosine(0.05) == pytest.approx((0.01 + 1) / 2)
    assert warmup_cosine(0.1) == 1
    assert warmup_cosine(0.55) == pytest.approx(0.5)  # half of the way down
    assert warmup_cosine(0.1 + 0.9 / 3) == pytest.approx(0.75)  # (1 + cos 60 degrees) / 2
    assert warmup_cosine(1) == warmup_cosine(1.01) == 0
    assert warmup_cosine(0, warmup=0) == 1
    assert warmup_cosine(0.5, warmup=1) == pytest.approx(0.505)
