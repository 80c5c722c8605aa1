from itertools import pairwise

import pytest
import torch
from torch import nn

from resnet_ft import build_model, freeze, freeze_batchnorm, parameter_groups
from resnet_ft.models.cutting import fold_batchnorm
from resnet_ft.models.freezing import train_mode


def test_folding_leaves_the_function_and_takes_the_layers():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    for layer in (network[1], network[3]):
        nn.init.uniform_(layer.running_mean, -1, 1)
        nn.init.uniform_(layer.running_var, 0.5, 2)
    network.eval()
    folded = fold_batchnorm(network)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(images), network(images))
    # The second one has no convolution before it.
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules()) == 1
    assert isinstance(network[1], nn.BatchNorm2d)


class Branching(nn.Module):
    def forward(self, images):
        return images * 2 if images.sum() > 0 else images


def test_what_cannot_be_traced_stays_as_it_is():
    network = Branching().eval()
    assert fold_batchnorm(network) is network


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


def test_frozen_batchnorm_stands_still_in_training():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    freeze_batchnorm(model)
    train_mode(model)
    assert [layer.training for layer in model] == [True, False, True, True]
    mean = model[1].running_mean.clone()
    model(torch.randn(5, 3, 3, 3))
    assert torch.equal(model[1].running_mean, mean)
