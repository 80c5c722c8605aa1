import warnings
from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from resnet_ft import ParameterError, WeightsError, architectures, build_model


def saved_resnet18(path, num_classes=1000):
    network = models.resnet18(num_classes=num_classes)
    torch.save(network.state_dict(), path)
    return network.eval()


@pytest.mark.parametrize("arch", architectures())
def test_every_architecture_of_the_family_builds(arch):
    with torch.device("meta"):
        model = build_model(arch, 7, weights=None)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 7)
    assert model.arch == arch
    assert model.pretrained is False


def test_the_family_is_complete():
    assert {f"resnet{depth}" for depth in (18, 34, 50, 101, 152)} < set(architectures())
    assert {"resnext50_32x4d", "resnext101_64x4d", "wide_resnet101_2"} < set(architectures())


def test_logits_are_those_of_torchvision_from_the_same_state_dict(tmp_path):
    theirs = saved_resnet18(tmp_path / "a.pth")
    ours = build_model("resnet18", 1000, weights=tmp_path / "a.pth").eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))
    assert ours.pretrained is True


@pytest.mark.parametrize("kind", ["pth", "wrapped", "data-parallel", "safetensors"])
def test_weights_of_any_number_of_classes_are_read_from_a_file(tmp_path, kind):
    theirs = saved_resnet18(tmp_path / "a.pth", num_classes=12)
    state_dict, path = theirs.state_dict(), tmp_path / "a.pth"
    if kind == "wrapped":
        torch.save({"epoch": 3, "state_dict": state_dict}, path)
    elif kind == "data-parallel":
        torch.save({f"module.{name}": tensor for name, tensor in state_dict.items()}, path)
    elif kind == "safetensors":
        path = tmp_path / "a.safetensors"
        save_file(state_dict, path)
    ours = build_model("resnet18", 5, weights=str(path)).eval()
    assert ours.fc.weight.shape == (5, 512)
    assert torch.equal(ours.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert torch.equal(ours.bn1.running_var, theirs.bn1.running_var)


def test_weights_of_another_architecture_are_refused(tmp_path):
    saved_resnet18(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth.*another architecture"):
        build_model("resnet34", 5, weights=tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth"):
        build_model("resnet50", 5, weights=tmp_path / "a.pth")


def test_files_that_hold_no_weights_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(WeightsError, match="no weights file"):
        build_model("resnet18", 5, weights=tmp_path / "missing.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightsError, match="could not be read"):
        build_model("resnet18", 5, weights=tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        build_model("resnet18", 5, weights=tmp_path / "list.pth")
    torch.save(models.resnet18(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="could not be read"):
        build_model("resnet18", 5, weights=tmp_path / "model.pth")


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty cache, and a proxy that refuses every connection."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request._opener", None)  # it would keep the proxy of an earlier use
    return tmp_path / "torch"


def test_auto_warns_of_random_weights_where_none_can_be_loaded(no_network):
    with pytest.warns(UserWarning, match="RANDOM weights") as caught:
        model = build_model("resnet18", 3, weights="auto")
    assert model.pretrained is False
    assert "refused" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_default_fails_and_names_what_to_do(no_network):
    with pytest.raises(WeightsError, match="TORCH_HOME") as raised:
        build_model("resnet18", 3, weights="DEFAULT")
    assert "https://" in str(raised.value)
    assert str(no_network) in str(raised.value)


def test_cached_weights_need_no_network(no_network, monkeypatch):
    theirs = models.resnet18()
    weights = models.ResNet18_Weights.DEFAULT
    file = no_network / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build_model("resnet18", 3, weights="auto")
    assert model.pretrained is True
    assert torch.equal(model.conv1.weight, theirs.conv1.weight)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_damaged_cached_file_names_itself(no_network, content):
    weights = models.ResNet18_Weights.DEFAULT
    file = no_network / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=file.name):
        build_model("resnet18", 3, weights="DEFAULT")
    with pytest.warns(UserWarning, match="RANDOM weights"):
        assert build_model("resnet18", 3, weights="auto").pretrained is False


def test_timm_models_build_and_take_weights(tmp_path):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet10t", num_classes=9)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    model = build_model("timm/resnet10t", 4, weights=tmp_path / "a.pth")
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 4)
    assert torch.equal(model.conv1[0].weight, theirs.conv1[0].weight)
    assert model.arch == "timm/resnet10t"
    with pytest.raises(ParameterError, match="timm has no model"):
        build_model("timm/resnet10000", 4, weights=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet", 3), "resnet18, "),
        (("fcn_resnet50", 3), "is unknown"),
        (("resnet18",), "dataset.classes"),
        (("resnet18", 0), "not a number of classes"),
    ],
)
def test_wrong_arguments_name_the_right_ones(arguments, message):
    with pytest.raises(ParameterError, match=message):
        build_model(*arguments, weights=None)


TINY = "timm/test_resnet"


@pytest.fixture(scope="module")
def tiny():
    """The weights of a small network of 3 classes."""
    pytest.importorskip("timm")
    return build_model(TINY, 3, weights=None).state_dict()


def fits(tensors, path, num_classes=3) -> bool:
    """Whether a model has the weights of `tensors` once it has read the file."""
    model = build_model(TINY, num_classes, weights=path)
    return torch.equal(model.state_dict()["conv1.0.weight"], tensors["conv1.0.weight"])


def under(prefix, tensors):
    return {f"{prefix}{name}": one for name, one in tensors.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "model.",
        "net.",
        "backbone.",
        "_orig_mod.module.",
        "model.net.",
        "a.b.",
    ],
)
def test_what_wrappers_put_before_all_names_is_taken_off(tiny, tmp_path, prefix):
    torch.save(under(prefix, tiny), tmp_path / "a.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fits(tiny, tmp_path / "a.pth")


@pytest.mark.parametrize(
    "name", ["state_dict_ema", "model_ema", "model_state_dict", "network", "x"]
)
def test_the_one_thing_that_fits_is_found_a_level_below(tiny, tmp_path, name):
    beside = {
        "args": Namespace(lr=np.float64(1)),
        "optimizer": {"state": {0: {"a": torch.ones(1)}}},
    }
    torch.save({**beside, name: under("module.", tiny), "epoch": 3}, tmp_path / "a.pth")
    assert fits(tiny, tmp_path / "a.pth")


def test_of_several_networks_the_usual_one_is_taken_with_a_word_or_none(tiny, tmp_path):
    other = {name: one + 1 for name, one in tiny.items()}
    ema = {"n_averaged": torch.tensor(3), **under("module.", other)}  # as torchvision writes it
    torch.save({"model": tiny, "model_ema": ema}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"model, model_ema module\.; model is used") as caught:
        assert fits(tiny, tmp_path / "a.pth")
    assert caught[0].filename == __file__
    torch.save({"model_ema": ema}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"1 tensors \(n_averaged\)"):
        assert fits(other, tmp_path / "a.pth")
    torch.save(under("student.", tiny) | under("teacher.", other), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"2 networks that fit: student\., teacher\."):
        build_model(TINY, 3, weights=tmp_path / "a.pth")


def test_weights_of_another_architecture_name_what_was_expected_and_found(tiny, tmp_path):
    torch.save({"features.0.weight": torch.ones(1)}, tmp_path / "a.pth")
    found = r"has 1 tensors \(features\.0\.weight\), but \d+ of the model's .*\(conv1\.0\.weight"
    with pytest.raises(WeightsError, match=found):
        build_model(TINY, 3, weights=tmp_path / "a.pth")


@pytest.mark.parametrize("num_classes", [3, 5])
def test_a_head_of_several_layers_is_left_out_with_a_word(tiny, tmp_path, num_classes):
    head = {
        "fc.0.weight": torch.ones(8, 64),
        "fc.0.bias": torch.ones(8),
        "fc.3.weight": torch.ones(3, 8),
    }
    rest = {name: one for name, one in tiny.items() if not name.startswith("fc.")}
    torch.save(rest | head, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"other layers, 3 tensors \(fc\.0\.bias.*head .* is new"):
        assert fits(tiny, tmp_path / "a.pth", num_classes)


def test_weights_that_are_not_finite_are_refused(tiny, tmp_path):
    torch.save({**tiny, "conv1.0.weight": tiny["conv1.0.weight"] * np.nan}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"not finite, such as conv1\.0\.weight"):
        build_model(TINY, 3, weights=tmp_path / "a.pth")


def test_a_model_saved_whole_says_what_to_save_and_not_how_to_run_it(tmp_path):
    torch.save(models.resnet18(), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"holds torchvision\.models\.resnet\.ResNet") as raised:
        build_model("resnet18", 5, weights=tmp_path / "a.pth")
    told = str(raised.value)
    assert "weights_only" not in told and "\033" not in told
