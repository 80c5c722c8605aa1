"""The learning-rate range test: what it finds, and that it leaves no trace."""

import copy
import math
import multiprocessing
import random

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import network
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from resnet_ft import ParameterError, TrainingError, engine, freeze, make_dataloaders, train_model
from resnet_ft.data.mixing import MixedLoader
from resnet_ft.training.find_lr import find_lr, plan_lr_finder

FEW = {"num_steps": 20, "lowest": 1e-4}


def tensors(count=22, seed=0):
    images = torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(images, (images.mean(dim=(1, 2, 3)) > 0).long())


def shuffling():
    """A loader that draws its order from a generator of its own."""
    generator = torch.Generator().manual_seed(1)
    return DataLoader(tensors(), batch_size=5, shuffle=True, generator=generator)


def shuffling_by_default():
    return DataLoader(tensors(), batch_size=5, shuffle=True)


class Varied(Dataset):
    """Images that are different each time, by random numbers of the process that reads them."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return torch.randn(3, 9, 9), i % 2


def with_persistent_workers():
    """A loader whose workers have drawn random numbers already and will draw more."""
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(
        Varied(), 5, shuffle=True, generator=generator, num_workers=1, persistent_workers=True
    )
    list(loader)
    return loader


def with_a_sampler_of_its_own():
    order = RandomSampler(tensors(), generator=torch.Generator().manual_seed(2))
    return DataLoader(tensors(), batch_sampler=BatchSampler(order, 5, drop_last=False))


def mixed():
    return MixedLoader(shuffling(), 2)


class Noisy(nn.Module):
    """A model that draws from every generator, and remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, images):
        if self.training:
            self.seen += len(images)
        return self.net(images) * (1 + 0.1 * random.random() * np.random.rand())


def described(value):
    """Anything as plain data that can be compared: tensors as bytes, down to the last bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: described(item) for key, item in value.items()}
    return [described(item) for item in value] if isinstance(value, list | tuple) else value


def everything(model, optimizer, criterion, loader):
    """All that a trial could change."""
    parts = [loader, loader.batch_sampler, loader.sampler]
    parts += [getattr(loader.batch_sampler, "sampler", None)]
    generators = [getattr(part, "generator", None) for part in parts]
    return described(
        {
            "parameters": dict(model.named_parameters()),
            "buffers": dict(model.named_buffers()),
            "identities": [id(tensor) for tensor in (*model.parameters(), *model.buffers())],
            "gradients": [parameter.grad for parameter in model.parameters()],
            "trains": [parameter.requires_grad for parameter in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "attributes": [sorted(module.__dict__) for module in model.modules()],
            "optimizer": optimizer.state_dict(),
            "criterion": criterion.state_dict(),
            "generators": [generator and generator.get_state() for generator in generators],
            "epochs": [getattr(part, "epoch", None) for part in parts],
            "random": [random.getstate(), np.random.get_state(), torch.get_rng_state()],
            "workers": len(multiprocessing.active_children()),
        }
    )


@pytest.fixture(params=[0, 2, shuffling, shuffling_by_default, with_a_sampler_of_its_own, mixed])
def loader(request, photos):
    """That of make_dataloaders, with 0 or 2 workers, in its third epoch, and others."""
    if callable(request.param):
        return request.param()
    loaders = make_dataloaders(photos, image_size=9, batch_size=5, num_workers=request.param)
    for _ in range(2):
        list(loaders["train"])
    return loaders["train"]


@pytest.fixture
def trained():
    """A model mid-training: partly frozen, with gradients, momentum, mixed modes."""
    model = Noisy()
    freeze(model, until="net.1")
    optimizer = torch.optim.SGD(
        [{"params": model.net[1].parameters(), "lr": 0.01}, {"params": model.net[6].parameters()}],
        lr=0.05,
        momentum=0.9,
    )
    model(torch.randn(4, 3, 9, 9)).sum().backward()
    optimizer.step()
    model.net[6].bias.grad = None
    model.net[5].eval()
    return model, optimizer, nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]))


def test_everything_is_as_it_was(trained, loader):
    model, optimizer, criterion = trained
    before = everything(model, optimizer, criterion, loader)
    found = find_lr(model, loader, criterion, optimizer, **FEW)
    assert len(found.history) > 10
    assert everything(model, optimizer, criterion, loader) == before


class Interrupted(nn.CrossEntropyLoss):
    steps = 0

    def forward(self, logits, labels):
        Interrupted.steps += 1
        if Interrupted.steps == 7:
            raise KeyboardInterrupt
        return super().forward(logits, labels)


def test_everything_is_as_it_was_after_an_interrupt_too(trained, loader):
    model, optimizer, _ = trained
    criterion, Interrupted.steps = Interrupted(), 0
    before = everything(model, optimizer, criterion, loader)
    with pytest.raises(KeyboardInterrupt):
        find_lr(model, loader, criterion, optimizer, **FEW)
    assert everything(model, optimizer, criterion, loader) == before


def test_a_new_model_keeps_no_gradients(small_network):
    find_lr(small_network, shuffling(), **FEW)
    assert all(parameter.grad is None for parameter in small_network.parameters())
    assert small_network.training


def run(photos, kind, *, finds):
    """Two epochs of training, before which the learning rate is looked for, or not."""
    torch.manual_seed(4)
    random.seed(4)
    np.random.seed(4)
    model = Noisy()
    if callable(kind):
        loaders = {"train": kind(), "val": DataLoader(tensors(seed=1), batch_size=4)}
    else:
        loaders = make_dataloaders(photos, image_size=9, batch_size=5, num_workers=kind)
    if finds:
        find_lr(model, loaders["train"], **FEW)
    _, history = train_model(model, loaders, num_epochs=2)
    return described(model.state_dict()), history.drop(columns="seconds")


KINDS = [0, 1, shuffling, shuffling_by_default, with_persistent_workers, mixed]


@pytest.mark.parametrize("kind", KINDS)
def test_training_afterwards_is_the_same_to_the_last_bit(photos, kind):
    weights, history = run(photos, kind, finds=True)
    expected_weights, expected = run(photos, kind, finds=False)
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    assert weights == expected_weights


def test_learning_rates_grow_by_the_same_factor_from_step_to_step(small_network):
    found = find_lr(small_network, shuffling(), lowest=1e-5, highest=1e-2, num_steps=25)
    rates = found.history["learning_rate"]
    assert list(found.history) == ["learning_rate", "loss", "smoothed"]
    assert (len(rates), rates[0], rates[24]) == (25, pytest.approx(1e-5), pytest.approx(1e-2))
    assert (rates[1:].to_numpy() / rates[:-1].to_numpy()).tolist() == pytest.approx(
        [10 ** (1 / 8)] * 24
    )


def test_losses_are_those_of_a_plain_loop(small_network):
    """22 images are five batches, gone through five times."""

    def optimizer_of(model):
        groups = [{"params": model[0].parameters(), "lr": 0.3}, {"params": model[6].parameters()}]
        return torch.optim.SGD(groups, lr=3.0, momentum=0.9)

    model, optimizer = copy.deepcopy(small_network), optimizer_of(small_network)
    rates = np.geomspace(1e-4, 0.1, 25)
    torch.manual_seed(7)  # dropout draws from the default generator
    loader = shuffling()
    found = find_lr(small_network, loader, None, optimizer, lowest=1e-4, highest=0.1, num_steps=25)
    torch.manual_seed(7)
    optimizer, losses = optimizer_of(model), []
    for rate, (images, labels) in zip(rates, [batch for _ in range(5) for batch in loader]):  # noqa: B905
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate / 10, rate
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert found.history["loss"].tolist() == pytest.approx(losses, rel=1e-6)


def test_frozen_layers_stay_frozen_in_the_trial(small_network):
    """BatchNorm in what is frozen uses the statistics that it has, as in evaluation."""
    freeze(small_network, until="6")
    images = torch.ones(2, 3, 9, 9) * torch.tensor([0.0, 1.0])[:, None, None, None]
    data = TensorDataset(images, torch.tensor([0, 1]))
    small_network.eval()
    logits = small_network(images)
    expected = nn.functional.cross_entropy(logits, data.tensors[1]).item()
    small_network[5].p = 0.0
    found = find_lr(small_network, DataLoader(data, batch_size=2), **FEW)
    assert found.history["loss"][0] == pytest.approx(expected, rel=1e-6)


class Scripted:
    """A criterion that says what a test wants, step by step."""

    def __init__(self, losses):
        self.losses = iter(list(losses))

    def __call__(self, logits, labels):
        return 0 * logits.sum() + next(self.losses)


def scripted(losses):
    """What find_lr makes of these losses, whatever the model."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    data = TensorDataset(torch.zeros(2, 3, 1, 1), torch.tensor([0, 1]))
    return find_lr(network, DataLoader(data), Scripted(losses))


RATES = np.geomspace(1e-7, 1.0, 100)


def fall_at(rate, seed):
    """A loss that falls most steeply at `rate`, to rise again from 0.1 on; noise all along."""
    fall = 1 / (1 + np.exp(-(np.log10(RATES) - math.log10(rate)) / 0.3))
    noise = 0.15 * np.random.default_rng(seed).standard_normal(100)
    return 2 - 1.5 * fall + 30 * np.clip(RATES - 0.1, 0, None) + noise


@pytest.mark.parametrize("rate", [1e-5, 1e-3, 1e-2])
@pytest.mark.parametrize("seed", range(3))
def test_the_suggestion_is_where_the_loss_falls_most_steeply(rate, seed):
    losses = fall_at(rate, seed)
    losses[30] = 0.3  # one easy batch
    suggestion = scripted(losses).suggestion
    assert rate / 2 < suggestion < rate * 2


def test_the_suggestion_is_before_the_minimum_even_if_the_loss_falls_steeply_later():
    losses = fall_at(1e-4, 0)
    losses[80:] = [*np.linspace(1, 3, 10), *np.linspace(3, 0.8, 10)]
    assert scripted(losses).suggestion < 1e-3


def test_a_loss_that_does_not_fall_gives_no_suggestion_but_a_plot():
    noise = np.random.default_rng(0).standard_normal(100)
    for losses in (1 + 0.1 * noise, np.linspace(1, 3, 100)):
        found = scripted(losses)
        with pytest.raises(TrainingError, match="does not fall from 1e-07 to 1e"):
            _ = found.suggestion
        assert found.plot().get_title(loc="left") == "The loss does not fall"


def test_the_trial_ends_once_the_running_loss_is_four_times_its_lowest():
    # From 1 the running loss continues as 1 + 9 * (1 - 0.9**k): 4.1 with the fourth loss of 10.
    history = scripted([1.0] * 60 + [10.0] * 40).history
    assert history["loss"].tolist() == [1.0] * 60 + [10.0] * 3
    history = scripted([1.0] * 50 + [10.0] + [1.0] * 49).history
    assert len(history) == 100


def test_the_trial_ends_before_a_loss_that_is_not_finite():
    for bad in (math.nan, math.inf):
        history = scripted([1.0] * 30 + [bad] * 70).history
        assert history["loss"].tolist() == [1.0] * 30
        with pytest.raises(TrainingError, match="first batch"):
            scripted([bad] * 100)


def test_training_with_the_suggestion_works(small_network):
    loader = DataLoader(tensors(64), batch_size=16, shuffle=True)
    small_network[5].p = 0.0
    suggestion = find_lr(small_network, loader, num_steps=60).suggestion

    def loss_after_training(rate):
        model, optimizer = copy.deepcopy(small_network), None
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        loaders = {"train": loader, "val": loader}
        return train_model(model, loaders, None, optimizer, num_epochs=3)[1]["train_loss"]

    losses = loss_after_training(suggestion)
    assert losses[2] < losses[0] - 0.02
    assert losses[2] < loss_after_training(suggestion / 1000)[2]
    assert losses[2] < loss_after_training(min(1000 * suggestion, 10))[2]


def test_the_plot_says_what_it_shows(tmp_path):
    found = scripted(fall_at(1e-3, 0))
    ax = found.plot()
    assert ax.get_title(loc="left") == f"Steepest fall at {found.suggestion:.1e}"
    assert ax.get_xscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "training loss (cross-entropy)")
    marked = ax.lines[-1].get_xdata()
    assert list(marked) == [found.suggestion] * 2
    ax.figure.savefig(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").stat().st_size > 5000


def test_the_scale_of_mixed_precision_is_as_it_was(small_network, monkeypatch):
    """A GPU that computes in fp16 has one; it halves with every gradient that is infinite."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    monkeypatch.setattr(engine.accelerator(), "scaler", scaler)
    scales = []

    class Overflowing(nn.CrossEntropyLoss):
        def forward(self, logits, labels):
            scales.append(scaler.get_scale())
            logits.register_hook(lambda gradient: gradient * math.inf)
            return super().forward(logits, labels)

    find_lr(small_network, shuffling(), Overflowing(), **FEW)
    assert scales[-1] < 1
    assert scaler.get_scale() == 2.0**8


@pytest.mark.parametrize(
    "wrong", [{"lowest": 0.0}, {"lowest": 1e-2, "highest": 1e-3}, {"num_steps": 5}]
)
def test_empty_ranges_are_refused(small_network, wrong):
    with pytest.raises(ParameterError, match=r"lowest=.*num_steps="):
        find_lr(small_network, shuffling(), **wrong)


def test_what_cannot_be_trained_is_named(small_network):
    empty = DataLoader(tensors(3), batch_size=4, drop_last=True)
    with pytest.raises(TrainingError, match="loader yields no batch"):
        find_lr(small_network, empty)
    stranger = torch.optim.SGD(copy.deepcopy(small_network).parameters(), lr=1.0)
    with pytest.raises(TrainingError, match="none of the layers that train"):
        find_lr(small_network, shuffling(), None, stranger)
    for parameter in small_network.parameters():
        parameter.requires_grad = False
    with pytest.raises(TrainingError, match="Every layer is frozen"):
        find_lr(small_network, shuffling())


def test_the_finder_is_left_out_on_a_processor_and_says_so(capsys, monkeypatch):
    assert plan_lr_finder(25, 10) == 25
    assert capsys.readouterr().out == ""
    assert plan_lr_finder(None, 10_000) == 0
    assert "on a processor" in capsys.readouterr().out
    monkeypatch.setattr(engine, "device", lambda: torch.device("meta"))  # stands for a GPU
    assert [plan_lr_finder(None, steps) for steps in (10_000, 500)] == [100, 50]
    assert capsys.readouterr().out == ""
    assert plan_lr_finder(None, 199) == 0
    assert "a tenth of the 199 training steps" in capsys.readouterr().out


class Narrow(nn.Module):
    """Has room for three images at once."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(243, 2))

    def forward(self, images):
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.layers(images)


def test_a_batch_that_is_too_large_is_split_as_in_training_and_said_once():
    torch.manual_seed(0)
    model = Narrow()
    with pytest.warns(UserWarning, match="5 images at once.*in 2 micro-batches") as said:
        found = find_lr(model, DataLoader(tensors(20), batch_size=5), **FEW)
    assert len(said) == 1
    expected = find_lr(model.layers, DataLoader(tensors(20), batch_size=5), **FEW)
    np.testing.assert_allclose(found.history["loss"], expected.history["loss"], rtol=1e-4)
