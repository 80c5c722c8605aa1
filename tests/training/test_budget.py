"""How long a run takes: a time budget, and the number of epochs."""

import re
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from resnet_ft import engine
from resnet_ft.errors import ParameterError
from resnet_ft.training import budget
from resnet_ft.training.averaging import WeightAverage
from resnet_ft.training.budget import TimeBudget, expected_duration, plan_epochs
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.loop import train_model
from resnet_ft.training.schedule import make_scheduler

STEP = 0.03  # seconds that a batch takes in the tests of time


def loaders_of(train_steps, val_steps, seconds=0.0):
    def collate(samples):
        time.sleep(seconds)
        return default_collate(samples)

    def loader(steps):
        data = TensorDataset(torch.randn(2 * steps, 3, 9, 9), torch.tensor([0, 1] * steps))
        return DataLoader(data, batch_size=2, collate_fn=collate)

    return {"train": loader(train_steps), "val": loader(val_steps)}


class Watch(Callback):
    """Keeps the progress and the learning rate of every training step, and when an epoch ended.

    The end of the run does not count here: accelerate then collects garbage for half a second.
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
def quick_model():
    """A model that takes next to no time, and an Accelerator, which takes seconds to make."""
    engine.device()
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 9, 2))


def test_a_run_of_many_epochs_keeps_its_time_and_the_schedule_follows_the_clock(quick_model):
    started = time.perf_counter()
    time.sleep(0.6)  # work before training
    budget = TimeBudget(minutes=3 / 60, started=started)
    optimizer = torch.optim.SGD(quick_model.parameters(), lr=0.1)
    watch = Watch(budget)
    _, history = train_model(
        quick_model,
        loaders_of(train_steps=12, val_steps=5, seconds=STEP),
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, "cosine", budget),
        num_epochs=1000,
        callbacks=[watch, budget],
    )
    assert 0.9 * 3 < watch.ended - started < 1.1 * 3
    assert len(history) > 2
    assert watch.progress[0] < 0.1 and 0.85 < watch.progress[-1] <= 1
    assert watch.learning_rates[0] < 0.01
    assert max(watch.learning_rates) > 0.095 and watch.learning_rates[-1] < 0.005


def test_a_budget_shorter_than_an_epoch_stops_mid_epoch_and_validates(quick_model):
    loaders = loaders_of(train_steps=100, val_steps=4, seconds=STEP)
    started = time.perf_counter()
    watch = Watch(budget := TimeBudget(minutes=1 / 60, started=started))
    _, history = train_model(quick_model, loaders, num_epochs=3, callbacks=[watch, budget])
    # The first validation is expected to take half as long as it does here: 0.06 s too little.
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


def test_a_validation_is_expected_to_take_as_long_as_the_last_one(quick_model):
    started = time.perf_counter()
    watch = Watch(budget := TimeBudget(minutes=2 / 60, started=started))
    _, history = train_model(
        quick_model,
        loaders_of(train_steps=25, val_steps=1, seconds=STEP),
        num_epochs=9,
        callbacks=[Rest(0.4), watch, budget],
    )
    assert 0.9 * 2 < watch.ended - started < 1.1 * 2
    assert len(history) == 2 and 25 < len(watch.progress) < 50


def test_the_points_between_start_and_end_are_scored_within_the_budget(quick_model):
    watch = Watch(budget := TimeBudget(1.5 / 60))
    head = {"epoch": 0, "val_loss": 9.0, "val_accuracy": 0.0}
    started = time.perf_counter()
    _, history = train_model(
        quick_model,
        loaders_of(train_steps=5, val_steps=4, seconds=STEP),
        num_epochs=100,
        first_row=head,
        callbacks=[budget, WeightAverage(), watch],
    )
    # Five passes over the validation batches, 0.6 s, instead of two.
    assert "between_val_loss" in history
    assert 1.1 < watch.ended - started < 1.7  # a busy machine ends earlier


def test_no_epoch_begins_without_time_for_a_step(quick_model):
    budget = TimeBudget(minutes=0.8 / 60)
    loaders = loaders_of(train_steps=4, val_steps=1, seconds=STEP)
    _, history = train_model(quick_model, loaders, num_epochs=9, callbacks=[Rest(0.5), budget])
    assert len(history) == 1


def test_the_least_budget_still_gives_a_model(small_network):
    loaders = loaders_of(train_steps=3, val_steps=2)
    budget = TimeBudget(minutes=1e-9)
    assert budget.progress == 0
    _, history = train_model(small_network, loaders, num_epochs=3, callbacks=[budget])
    assert len(history) == 1 and budget.progress == 1


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_minutes_that_are_not_positive_are_refused(minutes):
    with pytest.raises(ParameterError, match="minutes"):
        TimeBudget(minutes)


def test_by_default_there_are_5_epochs_and_25_from_random_weights(quick_model):
    assert plan_epochs(quick_model, {}) == 5
    quick_model.pretrained = False
    assert plan_epochs(quick_model, {}) == 25
    assert plan_epochs(quick_model, {}, epochs=3) == 3


def test_a_budget_plans_as_many_epochs_as_begin_within_it(quick_model):
    loaders = loaders_of(train_steps=3, val_steps=3)
    before = [parameter.clone() for parameter in quick_model.parameters()]
    few, many = (
        plan_epochs(quick_model, loaders, budget=TimeBudget(minutes)) for minutes in (0.01, 1)
    )
    assert 1 <= few < many
    assert plan_epochs(quick_model, loaders, budget=TimeBudget(1e-12)) == 0
    assert all(map(torch.equal, before, quick_model.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1, "budget": TimeBudget(1)}, "epochs or minutes, not both"),
        ({"epochs": 1.5}, "whole number"),
        ({"epochs": -1}, "whole number"),
    ],
)
def test_epochs_that_mean_nothing_are_refused(quick_model, options, message):
    with pytest.raises(ParameterError, match=message):
        plan_epochs(quick_model, {}, **options)


def test_the_expected_duration_is_near_the_true_one_and_leaves_no_trace(quick_model):
    loaders = loaders_of(train_steps=6, val_steps=3, seconds=STEP)
    before = [parameter.clone() for parameter in quick_model.parameters()], torch.get_rng_state()
    epochs = round(600 / (8 * STEP))  # ten minutes of waiting for batches, and what steps take
    text = expected_duration(quick_model, loaders, epochs)
    minutes = int(
        re.match(rf"About (\d+) minutes on cpu, full .*: {epochs} epochs of 6 s", text)[1]
    )
    assert 10 <= minutes < 40
    assert expected_duration(quick_model, loaders, 1).startswith("Less than a minute on cpu")
    assert "T4 GPU" in text
    assert all(map(torch.equal, before[0], quick_model.parameters()))
    assert torch.equal(before[1], torch.get_rng_state())
    assert expected_duration(quick_model, loaders, 0).startswith("Only the head")


@pytest.mark.parametrize(("slow", "sizes"), [(0.0, [4, 20, 20]), (0.8, [4, 4])])
def test_a_processor_is_timed_with_few_images_where_all_would_take_long(quick_model, slow, sizes):
    found = []

    def look(_, inputs):
        found.append(len(inputs[0]))
        time.sleep(slow)

    quick_model.register_forward_pre_hook(look)
    images, labels = next(iter(loaders_of(train_steps=1, val_steps=1)["train"]))
    batch = images[:1].repeat(20, 1, 1, 1), labels[:1].repeat(20)
    loader = DataLoader([batch] * 3, batch_size=None)
    seconds = budget._step_seconds(quick_model, loader, steps=2)
    assert found[: len(sizes)] == sizes and found[-1] == sizes[-1]
    assert seconds >= slow * 5
