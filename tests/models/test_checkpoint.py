import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from resnet_ft import (
    CheckpointError,
    Predictor,
    build_model,
    load_checkpoint,
    save_checkpoint,
)

PREPROCESSING = {"image_size": 64, "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture
def saved(tmp_path):
    model = build_model("resnet18", 3, weights=None).eval()
    path = save_checkpoint(
        tmp_path / "best.pt",
        model,
        classes=["a", "b", "c"],
        preprocessing=PREPROCESSING,
        scores={"val_accuracy": 0.75},
    )
    return model, path


def test_a_model_comes_back_as_it_was(saved):
    model, path = saved
    checkpoint = load_checkpoint(path)
    assert checkpoint.arch == "resnet18"
    assert checkpoint.classes == ["a", "b", "c"]
    assert checkpoint.preprocessing == PREPROCESSING
    assert checkpoint.scores == {"val_accuracy": 0.75}
    assert checkpoint.versions["torch"] == torch.__version__
    images = torch.randn(2, 3, 64, 64)
    loaded = checkpoint.load_into()
    assert torch.equal(loaded(images), model(images))
    assert loaded.classes == ["a", "b", "c"]
    assert not loaded.training


def test_a_checkpoint_is_plain_data_that_needs_no_class_of_this_library(saved):
    code = (
        "import sys, torch; content = torch.load(sys.argv[1], weights_only=True);"
        "assert 'resnet_ft' not in sys.modules; print(content['arch'], content['classes'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, saved[1]], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "resnet18 ['a', 'b', 'c']"


def test_the_evaluation_transform_comes_back(saved):
    steps = repr(load_checkpoint(saved[1]).transform())
    assert "CenterCrop(size=(64, 64))" in steps and "mean=[0.5, 0.5, 0.5]" in steps


def test_a_model_that_build_model_does_not_know_is_given(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "own.pt", model))
    with pytest.raises(CheckpointError, match="give it as model="):
        checkpoint.load_into()
    again = checkpoint.load_into(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    assert torch.equal(again[1].weight, model[1].weight)
    with pytest.raises(CheckpointError, match="another model"):
        checkpoint.load_into(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    with pytest.raises(CheckpointError, match="transform"):
        checkpoint.transform()


def test_class_names_do_not_depend_on_the_order_of_layers(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))  # a counter without shape comes last
    model.classes = ["a", "b"]
    assert load_checkpoint(save_checkpoint(tmp_path / "a.pt", model)).class_names() == ["a", "b"]


def test_without_names_the_classes_of_a_resnet_are_numbers(tmp_path):
    path = save_checkpoint(tmp_path / "a.pt", build_model("resnet18", 3, weights=None))
    assert load_checkpoint(path).class_names() == ["0", "1", "2"]


def test_a_model_changed_after_it_was_built_names_the_remedy(tmp_path):
    model = build_model("resnet18", 3, weights=None)
    model.fc = nn.Sequential(nn.Dropout(), nn.Linear(512, 3))
    path = save_checkpoint(tmp_path / "a.pt", model, classes=["a", "b", "c"])
    with pytest.raises(CheckpointError, match=r"changed after build_model.*model="):
        load_checkpoint(path).load_into()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_model_is_saved_like_the_one_inside(tmp_path, wrap):
    model = build_model("resnet18", 3, weights=None)
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "a.pt", wrap(model)))
    assert list(checkpoint.state_dict) == list(model.state_dict())
    assert checkpoint.load_into().arch == "resnet18"


def test_tensors_of_any_device_and_layout_are_saved_on_the_cpu(tmp_path):
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "a.pt", model))
    assert checkpoint.state_dict["weight"].is_contiguous()
    assert torch.equal(checkpoint.state_dict["weight"], model.weight)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": Malicious()}, tmp_path / "evil.pt")
    (tmp_path / "evil2.pt").write_bytes(pickle.dumps(Malicious()))
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_an_os_error_and_leaves_the_file_as_it_was(saved):
    model, path = saved
    before = path.read_bytes()
    full = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # as atomic_write calls it
    full.symlink_to("/dev/full")
    with pytest.raises(OSError):
        save_checkpoint(path, model)
    assert path.read_bytes() == before and not full.is_symlink()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named_with_the_remedy(saved, share):
    content = saved[1].read_bytes()
    saved[1].write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"best\.pt cannot be read.*Save it again"):
        load_checkpoint(saved[1])


def test_a_checkpoint_with_parts_missing_is_named(saved):
    content = torch.load(saved[1], weights_only=True)
    del content["classes"]
    torch.save(content, saved[1])
    with pytest.raises(CheckpointError, match="not in the format"):
        load_checkpoint(saved[1])


def test_class_names_of_other_types_are_saved_as_plain_text(tmp_path):
    path = save_checkpoint(tmp_path / "a.pt", nn.Linear(1, 2), classes=list(np.array(["a", "b"])))
    assert load_checkpoint(path).classes == ["a", "b"]


def test_another_kind_of_file_is_named(tmp_path):
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"weights=path"):
        load_checkpoint(tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "missing.pt")


def test_a_checkpoint_in_the_first_format_which_did_not_count_classes_is_read(tmp_path):
    model = build_model("resnet18", 3, weights=None)
    path = save_checkpoint(tmp_path / "old.pt", model)
    content = torch.load(path, weights_only=True)
    assert content.pop("num_classes") == 3
    torch.save({**content, "format": "resnet_ft checkpoint 1"}, path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.num_classes == 3 and checkpoint.class_names() == ["0", "1", "2"]
    assert torch.equal(checkpoint.load_into().fc.weight, model.fc.weight)


@pytest.mark.parametrize(
    ("number", "lacks"), [(1, ["num_classes", "calibration"]), (2, ["calibration"])]
)
def test_a_checkpoint_in_an_older_format_predicts_the_same(tmp_path, number, lacks):
    model = build_model("resnet18", 3, weights=None)
    preprocessing = {"image_size": 32, "mean": [0.5] * 3, "std": [0.3] * 3}
    path = save_checkpoint(
        tmp_path / "a.pt", model, classes=["a", "b", "c"], preprocessing=preprocessing
    )
    image = Image.effect_noise((60, 50), 90)
    expected = Predictor.load(path).predict(image)
    content = torch.load(path, weights_only=True)
    content = {name: value for name, value in content.items() if name not in lacks}
    torch.save({**content, "format": f"resnet_ft checkpoint {number}"}, path)
    assert Predictor.load(path).predict(image) == expected


def test_a_checkpoint_in_a_newer_format_is_refused_with_the_remedy(saved):
    _, path = saved
    newer = changed(path, format="resnet_ft checkpoint 4", surprise=1)
    with pytest.raises(CheckpointError, match=r"found 'resnet_ft checkpoint 4'.*newer resnet_ft"):
        Predictor.load(newer)


def changed(path, **values):
    """The checkpoint with other values in its content."""
    torch.save(torch.load(path, weights_only=True) | values, path)
    return path


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(saved, value):
    model, path = saved
    with torch.no_grad():
        model.layer1[0].conv1.weight[0, 0, 0, 0] = value
    save_checkpoint(path, model, classes=["a", "b", "c"])
    with pytest.raises(CheckpointError, match=r"1 of its tensors .*not finite.*layer1\.0\.conv1"):
        load_checkpoint(path)


def test_a_variance_below_zero_is_refused(saved):
    model, path = saved
    model.bn1.running_var[3] = -1
    with pytest.raises(CheckpointError, match=r"bn1\.running_var, a variance, is below zero"):
        load_checkpoint(save_checkpoint(path, model, classes=["a", "b", "c"]))


def test_class_names_that_occur_twice_are_refused_when_read_and_when_written(saved):
    model, path = saved
    with pytest.raises(CheckpointError, match="classes are called a"):
        load_checkpoint(changed(path, classes=["a", "b", "a"]))
    with pytest.raises(CheckpointError, match="classes are called a"):
        save_checkpoint(path, model, classes=["a", "b", "a"])


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"num_classes": 10**9, "classes": None}, "no layer has so many outputs"),
        ({"num_classes": 4}, "names 3 classes and counts 4"),
        ({"num_classes": "3"}, "num_classes is a str"),
        ({"classes": [1, 2, 3]}, "more than names"),
        ({"classes": "abc"}, "classes is a str"),
        ({"state_dict": {1: torch.ones(1)}}, "more than tensors"),
        ({"state_dict": {"a": 1}}, "more than tensors"),
        ({"state_dict": []}, "state_dict is a list"),
        ({"scores": None}, "scores is a NoneType"),
        ({"arch": 18}, "arch is a int"),
    ],
)
def test_contents_that_no_training_leaves_are_named(saved, values, reason):
    with pytest.raises(CheckpointError, match=rf"best\.pt cannot be read .*{reason}"):
        load_checkpoint(changed(saved[1], **values))


@pytest.mark.parametrize(
    "values",
    [
        {"image_size": 10**6},
        {"std": [0.5, 0, 0.5]},
        {"mean": [np.nan] * 3},
        {"mean": "a"},
        {"x": 1},
    ],
)
def test_a_preprocessing_that_cannot_be_is_named(saved, values):
    checkpoint = load_checkpoint(changed(saved[1], preprocessing=PREPROCESSING | values))
    with pytest.raises(CheckpointError, match=r"preprocessing .*transform=\.\.\."):
        checkpoint.transform()


@pytest.mark.parametrize(
    "content", [b"\x80", b"hello", b"\x80\x02}q\x00K\x01K\x02s.", b"\x80\x02h\x05.", b"\x80\x02R."]
)
def test_whatever_the_unpickler_raises_names_the_file(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt cannot be read \(.+\)\. Save it again"):
        load_checkpoint(tmp_path / "a.pt")
    torch.save({1: 2}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="not in the format"):
        load_checkpoint(tmp_path / "a.pt")
