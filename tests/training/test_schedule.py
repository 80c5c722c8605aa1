"""Where learning rates come from: by layer, by optimizer, and over the steps of a run."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft import build_model, freeze, freeze_batchnorm
from resnet_ft.errors import ParameterError
from resnet_ft.training.loop import train_model
from resnet_ft.training.schedule import (
    PerStep,
    make_optimizer,
    make_scheduler,
    parameter_groups,
    plot_schedule,
    warmup_cosine,
)


def test_learning_rates_rise_from_the_first_layer_to_the_head():
    model = build_model("resnet18", 3, weights=None)
    groups = parameter_groups(model, 0.1, weight_decay=0.05, first_layer=0.01)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    rates = [rate[id(parameter)] for parameter in model.parameters()]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(0.001) and rates[-1] == pytest.approx(0.1)
    ratios = {round(b / a, 6) for a, b in pairwise(rates) if b > a}
    assert ratios == {round(100 ** (1 / 7), 6)}  # eight bands, seven steps
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.05 if parameter.ndim > 1 else 0)


def test_groups_hold_what_trains_each_parameter_once():
    model = build_model("resnet18", 3, weights=None)
    model.pretrained = True
    freeze(model, until="layer4")
    freeze_batchnorm(model)
    held = [p for group in parameter_groups(model, 0.1) for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in held} == {id(p) for p in trained} and len(held) == len(trained)
    assert len(trained) == 7  # five convolutions of layer4, weight and bias of fc


@pytest.fixture
def groups():
    model = nn.Linear(3, 2)
    return [{"params": [model.weight], "lr": 1e-3}, {"params": [model.bias], "lr": 1e-4}]


def test_optimizers_are_made_by_name_and_sgd_gets_higher_rates(groups):
    rates = {}
    for name, kind in {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}.items():
        optimizer = make_optimizer(name, groups)
        assert type(optimizer).__name__ == kind
        rates[name] = [group["lr"] for group in optimizer.param_groups]
    assert rates["adamw"] == rates["adam"] == [1e-3, 1e-4]
    assert rates["sgd"] == pytest.approx([1e-2, 1e-3])
    with pytest.raises(ParameterError, match=r'optimizer=\'rmsprop\'.*"adamw", "adam" or "sgd"'):
        make_optimizer("rmsprop", groups)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("cosine", [0.01, 1, 0.5, 0]),
        ("linear", [0.01, 1, 0.5, 0]),
        ("constant", [0.01, 1, 1, 1]),
        (lambda progress: 1 + progress, [1, 1.1, 1.55, 2]),
    ],
)
def test_a_schedule_leads_the_rates_of_all_groups(groups, schedule, factors):
    optimizer = make_optimizer("adamw", groups)
    scheduler = make_scheduler(optimizer, schedule, 20)
    rates = []
    for _ in range(21):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    for step, factor in zip((0, 2, 11, 20), factors, strict=True):  # of 20: 0, 10, 55 and 100 %
        assert rates[step] == pytest.approx([1e-3 * factor, 1e-4 * factor])


def test_an_unknown_schedule_is_refused_with_the_known_ones(groups):
    with pytest.raises(ParameterError, match="cosine, linear, constant"):
        make_scheduler(make_optimizer("adamw", groups), "step", 10)


def test_the_plot_shows_the_rates_of_head_and_first_layer(groups):
    ax = plot_schedule(make_optimizer("adamw", groups), "linear")
    head, first = ax.lines
    assert head.get_label() == "head" and max(head.get_ydata()) == 1e-3
    assert first.get_label() == "first layer" and max(first.get_ydata()) == 1e-4
    assert ax.get_title(loc="left") == "Up to 1.0e-03 for the head, 1.0e-04 for the first layer"


def test_a_scheduler_per_step_is_stepped_after_every_training_step_and_saved(small_network):
    data = TensorDataset(torch.randn(6, 3, 9, 9), torch.tensor([0, 1] * 3))
    loaders = {phase: DataLoader(data, batch_size=2) for phase in ("train", "val")}
    optimizer = torch.optim.SGD(small_network.parameters(), lr=1.0)
    scheduler = PerStep(ExponentialLR(optimizer, gamma=0.5))
    _, history = train_model(small_network, loaders, None, optimizer, scheduler, 2)
    assert history["learning_rate"].tolist() == [1, 0.5**3]  # three steps per epoch
    other = PerStep(ExponentialLR(optimizer, gamma=0.1))
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
