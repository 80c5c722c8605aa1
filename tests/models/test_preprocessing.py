"""How the images of a network were prepared, known without its weights and without a model."""

import socket

import pytest
import torch
from torchvision.models import get_model, get_model_weights

from resnet_ft import (
    ParameterError,
    Preprocessing,
    architectures,
    build_model,
    eval_transform,
    make_dataloaders,
    preprocessing_of,
    save_checkpoint,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("arch", architectures())
def test_torchvision_says_how_for_each_of_its_resnets(arch):
    image = torch.randint(0, 256, (3, 270, 300), dtype=torch.uint8)
    expected = get_model_weights(arch).DEFAULT.transforms()(image)
    found = eval_transform(preprocessing_of(arch))(image)
    step = 1 / 255 / min(Preprocessing().std)  # one of 256 levels: they may round otherwise
    torch.testing.assert_close(found, expected, atol=1.01 * step, rtol=0)


def test_the_second_weights_of_torchvision_are_cut_from_232_pixels():
    assert preprocessing_of("resnet101").side == 232
    assert preprocessing_of("resnet101", image_size=112).side == 116
    assert preprocessing_of("resnet18").side == 256


def test_timm_says_how_for_its_own():
    timm = pytest.importorskip("timm")
    found = preprocessing_of("timm/tf_efficientnet_lite0", image_size=128)
    assert found == Preprocessing(128, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.875)
    assert preprocessing_of("timm/tf_efficientnet_lite0", None).mean == (0.5,) * 3
    expected = timm.get_pretrained_cfg("convnext_tiny")
    assert preprocessing_of("timm/convnext_tiny").crop_share == expected.crop_pct


def test_a_checkpoint_says_how_and_bare_weights_are_those_of_the_architecture(photos, tmp_path):
    wanted = Preprocessing(24, (0.1,) * 3, (0.2,) * 3)
    loaders = make_dataloaders(
        photos, train=eval_transform(wanted), val=eval_transform(wanted), num_workers=0
    )
    recorded = loaders["val"].dataset.preprocessing
    model = build_model("resnet18", 2, weights=None)
    file = save_checkpoint(tmp_path / "a.pt", model, classes=["a", "b"], preprocessing=recorded)
    assert preprocessing_of("resnet18", file) == wanted
    assert preprocessing_of("resnet18", file, image_size=32).image_size == 32
    torch.save(get_model("resnet18").state_dict(), tmp_path / "bare.pth")
    assert preprocessing_of("resnet18", tmp_path / "bare.pth") == Preprocessing()


def test_an_unknown_architecture_is_named():
    with pytest.raises(ParameterError, match="arch='resnet19' is unknown"):
        preprocessing_of("resnet19")
