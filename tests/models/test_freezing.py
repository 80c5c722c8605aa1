import pytest
import torch
from torch import nn

from resnet_ft import (
    ParameterError,
    build_model,
    count_parameters,
    freeze,
    freeze_batchnorm,
    unfreeze,
)
from resnet_ft.models.freezing import evaluation_mode, train_mode


@pytest.fixture
def resnet():
    model = build_model("resnet18", 3, weights=None)
    model.pretrained = True  # as far as freezing is concerned
    return model


def trainable(model):
    return {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("until", "trains"),
    [("layer4", {"layer4", "fc"}), ("fc", {"fc"}), ("layer3", {"layer3", "layer4", "fc"})],
)
def test_everything_before_the_layer_is_frozen(resnet, until, trains):
    freeze(resnet, until=until)
    assert trainable(resnet) == trains
    freeze(resnet, until="layer2")
    assert trainable(resnet) == {"layer2", "layer3", "layer4", "fc"}
    unfreeze(resnet)
    assert all(p.requires_grad for p in resnet.parameters())


def test_a_dotted_name_freezes_within_a_stage(resnet):
    freeze(resnet, until="layer4.1")
    frozen = [name for name, p in resnet.layer4.named_parameters() if not p.requires_grad]
    assert frozen and all(name.startswith("0.") for name in frozen)


def test_an_unknown_layer_names_the_known_ones(resnet):
    with pytest.raises(ParameterError, match="layer1, layer2, layer3, layer4, fc"):
        freeze(resnet, until="layer")


def test_freezing_random_weights_gives_a_warning():
    with pytest.warns(UserWarning, match="never learn"):
        freeze(build_model("resnet18", 3, weights=None))


def test_frozen_layers_keep_their_statistics_and_have_no_dropout():
    frozen = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    model = nn.Sequential(frozen, nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2))
    freeze(model, until="3")
    train_mode(model)
    assert not any(module.training for module in frozen.modules())
    assert model[2].training and model[3].training
    before = frozen[1].running_mean.clone()
    images = torch.randn(8, 3, 1, 1)
    assert torch.equal(frozen(images), frozen(images))
    assert torch.equal(frozen[1].running_mean, before)


def test_freeze_batchnorm_keeps_the_statistics_while_other_layers_train():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    freeze_batchnorm(model)
    train_mode(model)
    assert [layer.training for layer in model] == [True, False, True, True]
    mean = model[1].running_mean.clone()
    model(torch.randn(5, 3, 3, 3))
    assert torch.equal(model[1].running_mean, mean)


def test_evaluation_mode_ends_where_it_began(resnet):
    resnet.train()
    resnet.layer1.eval()
    with evaluation_mode(resnet):
        assert not any(module.training for module in resnet.modules())
    assert resnet.layer2.training and not resnet.layer1.training


def test_parameters_are_counted():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    freeze(model, until="1")
    assert count_parameters(model) == (4 * 2 + 2, 4 * 2 + 2 + 3 * 4 + 4)
