"""Ten of PyTorch's schedulers: interrupted, resumed, with more epochs, and with other settings."""

import os
import signal
import warnings

import pytest
import torch
from conftest import network
from tiny import FailAt, noise_loaders
from torch.optim import lr_scheduler as s

from resnet_ft import (
    Callback,
    ParameterError,
    PerStep,
    RunError,
    build_model,
    fine_tune,
    make_dataloaders,
    make_scheduler,
    train_model,
)

# Each with one of its settings: as it is first, as it is later, and its name in the error.
SCHEDULERS = {
    "step": (s.StepLR, 2, 1, "step_size was 2, now 1"),
    "steps": (lambda o, n: s.MultiStepLR(o, [1, n]), 3, 4, "milestones"),
    "exponential": (s.ExponentialLR, 0.9, 0.5, "gamma was 0.9, now 0.5"),
    "cosine": (s.CosineAnnealingLR, 3, 6, "T_max was 3, now 6"),
    "restarts": (s.CosineAnnealingWarmRestarts, 2, 3, "T_0 was 2, now 3"),
    "linear": (lambda o, n: s.LinearLR(o, total_iters=n), 3, 4, "total_iters was 3, now 4"),
    "polynomial": (lambda o, n: s.PolynomialLR(o, total_iters=n), 4, 5, "total_iters was 4"),
    "one cycle": (lambda o, n: s.OneCycleLR(o, 0.1, total_steps=n), 9, 5, "total_steps was 9"),
    "in a row": (
        lambda o, n: s.SequentialLR(
            o, [s.LinearLR(o, total_iters=2), s.MultiStepLR(o, [1, n])], [2]
        ),
        *(3, 2, "1 MultiStepLR.milestones"),
    ),
    "chained": (
        lambda o, n: s.ChainedScheduler([s.LinearLR(o), s.ExponentialLR(o, n)]),
        *(0.9, 0.8, "1 ExponentialLR.gamma was 0.9, now 0.8"),
    ),
    "plateau": (
        lambda o, n: s.ReduceLROnPlateau(o, patience=n, factor=0.5, threshold=9),
        *(0, 1, "patience was 0, now 1"),
    ),
    "cyclic": (lambda o, n: s.CyclicLR(o, 0.01, n, 2), 0.1, 0.2, "max_lrs"),
}


def train(make, run_dir, *, num_epochs=4, per_step=False, rates=(0.01, 0.02), callbacks=()):
    torch.manual_seed(0)
    model = network()
    groups = [{"params": model[:1].parameters(), "lr": rates[0]}]
    groups += [{"params": model[1:].parameters(), "lr": rates[1]}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    scheduler = make(optimizer)
    scheduler = PerStep(scheduler) if per_step else scheduler
    return train_model(
        *(model, noise_loaders(), None, optimizer, scheduler, num_epochs),
        run_dir=run_dir,
        callbacks=callbacks,
    )


def assert_equal(found, expected):
    (model, history), (other, whole) = found, expected
    assert history.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


FEW = ("cosine", "one cycle", "in a row", "plateau")  # of `make test`: seconds each


@pytest.mark.parametrize(
    "name",
    [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in SCHEDULERS],
)
def test_it_is_resumed_and_continued_as_if_undisturbed_or_refused_by_name(name, tmp_path):
    make, setting, other, said = SCHEDULERS[name]

    def first(optimizer):
        return make(optimizer, setting)

    for epoch, step in ((1, 3), (2, 1)):  # 3 training steps; the third is the epoch's last
        with pytest.raises(ZeroDivisionError):
            train(first, tmp_path / "run", callbacks=[FailAt(epoch, step, ZeroDivisionError())])
    assert_equal(train(first, tmp_path / "run"), train(first, None))
    assert_equal(train(first, tmp_path / "run", num_epochs=6), train(first, None, num_epochs=6))
    with pytest.raises(RunError, match=f"{said}.*another run_dir"):
        train(lambda optimizer: make(optimizer, other), tmp_path / "run", num_epochs=5)


@pytest.mark.parametrize("name", ["one cycle", "cosine", "in a row"])
def test_stepped_after_every_step_too(name, tmp_path):
    make, setting, *_ = SCHEDULERS[name]

    def first(optimizer):
        return make(optimizer, 4 * setting)

    with pytest.raises(ZeroDivisionError):
        train(
            *(first, tmp_path / "run"),
            per_step=True,
            callbacks=[FailAt(2, 2, ZeroDivisionError())],
        )
    expected = train(first, None, per_step=True)
    assert_equal(train(first, tmp_path / "run", per_step=True), expected)


def test_a_cycle_that_ends_before_the_run_is_refused_at_its_start(tmp_path):
    def cycle(optimizer):
        return s.OneCycleLR(optimizer, 0.1, total_steps=4)

    with pytest.raises(ParameterError, match="total_steps=4, but it is stepped 5 times"):
        train(cycle, None, num_epochs=5)
    with pytest.raises(ParameterError, match="stepped 12 times: after every step"):
        train(cycle, None, num_epochs=4, per_step=True)
    train(cycle, tmp_path / "run", num_epochs=4)
    with pytest.raises(ParameterError, match="stepped 5 times"):
        train(cycle, tmp_path / "run", num_epochs=5)


def test_other_rates_of_single_groups_are_refused(tmp_path):
    def still(optimizer):
        return s.StepLR(optimizer, 99)

    train(still, tmp_path / "run", num_epochs=1)
    with pytest.raises(RunError, match=r"learning_rates was \[0\.01, 0\.02\], now \[0\.001"):
        train(still, tmp_path / "run", num_epochs=2, rates=(0.001, 0.02))


class InterruptedAfter(Callback):
    """Ctrl-C at the end of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, state):
        if state.epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGINT)


def test_the_same_objects_resume_a_run_that_has_lowered_its_own_rates(tmp_path, small_network):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    optimizer = torch.optim.SGD(small_network.parameters(), lr=0.01)
    scheduler = s.ReduceLROnPlateau(optimizer, patience=0, threshold=9)
    run = (small_network, noise_loaders(), None, optimizer, scheduler, 4)
    with pytest.raises(KeyboardInterrupt):
        train_model(*run, run_dir=tmp_path / "run", callbacks=[InterruptedAfter(3)])
    signal.signal(signal.SIGINT, before)
    assert optimizer.param_groups[0]["lr"] < 0.01
    assert len(train_model(*run, run_dir=tmp_path / "run")[1]) == 4


def test_an_interrupt_in_the_first_validation_leaves_no_false_warning(tmp_path):
    class Interrupt(Callback):
        def on_step_end(self, state):
            if state.phase == "val":
                raise ZeroDivisionError

    def by_epoch(optimizer):
        return s.StepLR(optimizer, 1)

    with pytest.raises(ZeroDivisionError):
        train(by_epoch, tmp_path / "run", callbacks=[Interrupt()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(by_epoch, tmp_path / "run")


def test_a_plateau_that_waits_for_the_loss_to_rise_is_warned_of():
    with pytest.warns(UserWarning, match=r'mode="max"\) is given the validation loss'):
        train(lambda optimizer: s.ReduceLROnPlateau(optimizer, mode="max"), None, num_epochs=1)


def test_added_epochs_have_a_warm_up_and_a_decay_of_their_own(tmp_path, capsys):
    """3 steps per epoch: 6 steps, then 9 that are added."""

    def make(steps):
        return lambda optimizer: make_scheduler(optimizer, "linear", steps)

    class Rates(Callback):
        def __init__(self, after=0):
            self.rates, self.after = {}, after

        def on_step_begin(self, state):
            if state.phase == "train":
                self.rates[state.epoch - self.after, state.step] = state.learning_rate

    expected = Rates()
    train(make(9), None, num_epochs=3, callbacks=[expected])
    train(make(6), tmp_path / "run", num_epochs=2)
    found = Rates(after=2)
    with pytest.raises(ZeroDivisionError):
        interrupt = FailAt(4, 2, ZeroDivisionError())
        train(make(15), tmp_path / "run", num_epochs=5, callbacks=[found, interrupt])
    assert "follows its schedule anew for the 9 added steps" in capsys.readouterr().out
    train(make(15), tmp_path / "run", num_epochs=5, callbacks=[found])
    assert "anew" not in capsys.readouterr().out
    assert found.rates == pytest.approx(expected.rates)


@pytest.mark.slow
def test_a_longer_fine_tuning_warms_up_again(photos, tmp_path, capsys):
    def tune(epochs):
        loaders = make_dataloaders(photos, image_size=32, batch_size=6, num_workers=0)
        torch.manual_seed(0)
        model = build_model("resnet18", 2, weights=None)
        return fine_tune(model, loaders, epochs=epochs, run_dir=tmp_path / "run")[1]

    tune(2)
    history = tune(4)
    assert "anew for the 6 added steps" in capsys.readouterr().out
    rates = history["learning_rate"]  # at the beginning of each epoch
    assert rates[2] == pytest.approx(rates[0]) and rates[3] == pytest.approx(rates[1])
