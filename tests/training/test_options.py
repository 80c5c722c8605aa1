"""Parameters as people and tools give them: what is meant is taken, the rest is refused by name."""

import dataclasses
import json
import math

import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT

from resnet_ft import FineTuneOptions, MixedLoader, ParameterError, train_run, train_transform
from resnet_ft.__main__ import main
from resnet_ft.training.options import RunOptions, checked
from resnet_ft.training.schedule import make_optimizer, make_scheduler

NAMES = ["01_mount_drive", "02_explore_data", "03_train", "04_visualize", "05_infer"]


def of_notebook(name):
    """The parameters of a notebook with their values."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    (source,) = [cell.source for cell in cells if cell.metadata.get("tags") == ["parameters"]]
    values = {}
    exec(source, {}, values)
    return values


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("train_batchnorm", "false", False),
        ("train_batchnorm", "False", False),
        ("train_batchnorm", " no ", False),
        ("unmount", "true", True),
        ("unmount", 1, True),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", np.float64(0.5), 0.5),
        ("learning_rate", torch.tensor(0.25), 0.25),
        ("image_size", "16.0", 16),
        ("image_size", 16.0, 16),
        ("image_size", "1e2", 100),
        ("epochs", np.int64(3), 3),
        ("patience", "null", None),
        ("patience", "None", None),
        ("max_side", "", None),
        ("weights", "null", None),
        ("mix", "none", None),
        ("optimizer", "AdamW", "adamw"),
        ("mixed_precision", False, "no"),  # as YAML reads "no"
        ("lr_finder_steps", "0", 0),
        ("data_dir", 2024, "2024"),
        ("run_name", 7, "7"),
        ("schedule", math.sin, math.sin),
    ],
)
def test_what_is_meant_beyond_doubt_is_taken_and_a_change_is_said(name, given, meant):
    said = []
    value = checked({name: given}, say=said.append)[name]
    assert value == meant and type(value) is type(meant)
    expected = [] if given == meant else [f"Taken as it is meant: {name} {given!r} as {meant!r}."]
    assert said == expected


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("train_batchnorm", "maybe", "True or False"),
        ("train_batchnorm", 2, "True or False"),
        ("train_batchnorm", None, "True or False"),
        ("seed", None, "a whole number of 0 or more"),
        ("seed", 2**70, "a whole number of 0 or more and below 9,223,372,036,854,775,808"),
        ("image_size", "64px", "a whole number of 1 or more"),
        ("image_size", 16.5, "a whole number of 1 or more"),
        ("image_size", True, "a whole number of 1 or more"),
        ("image_size", [64], "a whole number of 1 or more"),
        ("image_size", np.zeros(2), "a whole number of 1 or more"),
        ("batch_size", 0, "a whole number of 1 or more"),
        ("epochs", -1, "None or a whole number of 0 or more"),
        ("epochs", "9" * 5000, "None or a whole number of 0 or more"),
        ("patience", 0, "None or a whole number of 1 or more"),
        ("label_smoothing", 10, "a number of 0 or more and below 1"),
        ("label_smoothing", 1.0, "a number of 0 or more and below 1"),
        ("learning_rate", math.nan, "None or a number above 0"),
        ("learning_rate", 10**400, "None or a number above 0"),
        ("save_minutes", math.inf, "a number above 0"),
        ("weight_decay", -0.1, "a number of 0 or more"),
        ("lr_finder_steps", 5, "None, a whole number of 20 or more or 0"),
        ("optimizer", None, '"adamw", "adam" or "sgd"'),
        ("mix", "mixupp", 'None, "mixup", "cutmix" or "both"'),
        ("balance", False, 'None, "loss" or "sampler"'),
        ("schedule", "cosinus", '"cosine", "linear", "constant" or a function'),
        ("run_name", 1.1, "None or text in quotes"),  # 1.10, perhaps
        ("runs_dir", " ", "text in quotes"),
        ("mount_point", True, "text in quotes"),
        ("top_k", -1, "a whole number of 1 or more"),
    ],
)
def test_anything_else_is_refused_with_what_is_expected(name, given, expected):
    with pytest.raises(ParameterError) as raised:
        checked({name: given})
    assert str(raised.value).startswith(f"{name}={given!r} should be {expected}"), raised.value


def test_networks_that_nobody_knows_are_refused_too():
    with pytest.raises(
        ParameterError, match=r"arch='resnet19' is unknown\. Choose one of resnet101"
    ):
        checked({"arch": "resnet19"})
    with pytest.raises(ParameterError, match="timm has no model 'resnet19x'"):
        checked({"arch": "timm/resnet19x"})


def test_all_that_is_wrong_is_named_at_once():
    wrong = {"seed": None, "image_size": "64px", "epochs": 1, "minutes": 1, "size": 3}
    with pytest.raises(ParameterError) as raised:
        checked(wrong, remedy="Correct them.")
    lines = str(raised.value).splitlines()
    starts = ["seed=None should", "image_size='64px' should", "size is not a parameter"]
    starts += ["Give epochs or minutes, not both", "Correct them"]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


@pytest.mark.parametrize("name", NAMES)
def test_the_table_knows_every_parameter_of_the_notebooks_and_takes_their_values(name):
    parameters = of_notebook(name)
    taken = checked(parameters, say=pytest.fail, from_form=True)
    assert taken == {name: None if value == "" else value for name, value in parameters.items()}


def test_what_a_form_cannot_give_otherwise_is_taken_without_a_word():
    given = {"epochs": "5", "learning_rate": "0.01", "max_side": "", "data_dir": "", "seed": 1}
    taken = checked(given, say=pytest.fail, from_form=True)
    assert taken == {
        **given,
        "epochs": 5,
        "learning_rate": 0.01,
        "max_side": None,
        "data_dir": None,
    }
    said = []
    checked({"epochs": "1e1", "mix": "none"}, say=said.append, from_form=True)
    assert said == ["Taken as it is meant: epochs '1e1' as 10, mix 'none' as None."]


def test_defaults_are_those_of_notebook_3():
    notebook = checked(of_notebook("03_train"), say=pytest.fail, from_form=True)
    notebook["data_dir"] = "sample"  # the last choice, where there was none
    notebook["data_source"] = notebook["data_dir"]
    for table in (FineTuneOptions, RunOptions):
        for option in dataclasses.fields(table):
            if option.name != "average_weights":  # the notebook always averages
                assert notebook[option.name] == option.default, option.name


def test_every_choice_of_the_table_is_one():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(2)))
    uses = {
        "optimizer": lambda choice: make_optimizer(choice, [{"params": [torch.zeros(1)], "lr": 1}]),
        "schedule": lambda choice: make_scheduler(optimizer, choice, 1),
        "mix": lambda choice: MixedLoader(loader, 2, choice),
        "augmentation": lambda choice: train_transform(32, strength=choice),
    }
    for name, use in uses.items():
        with pytest.raises(ParameterError) as raised:
            checked({name: "?"})
        choices = str(raised.value).split('"')[1::2]
        assert len(choices) >= 3
        for choice in choices:
            use(choice)


def test_options_convert_themselves_and_say_it_once():
    with pytest.warns(UserWarning, match=r"epochs '2' as 2, .*train_batchnorm 'false'") as said:
        options = FineTuneOptions(epochs="2", train_batchnorm="false", learning_rate="1e-4")
    assert len(said) == 1
    assert (options.epochs, options.train_batchnorm, options.learning_rate) == (2, False, 1e-4)
    assert options.described()["train_batchnorm"] is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_size": "64px", "seed": None}, r"image_size='64px' should .*\nseed=None should"),
        ({"fine_tune": {"label_smoothing": 10}}, r"fine_tune\.label_smoothing=10 should be"),
        ({"fine_tune": {"epochs": 1, "minutes": 1}}, "epochs or minutes"),
        ({"arch": "resnet19"}, "arch='resnet19' is unknown"),
        ({"fine_tune": 3}, "cannot be read"),
        ([1], "cannot be read"),
    ],
)
def test_a_config_is_refused_before_any_work(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ParameterError, match=message) as raised:
        train_run(file)
    assert str(file) in str(raised.value)
    assert json.loads(file.read_text()) == content and list(tmp_path.iterdir()) == [file]


def test_the_shell_refuses_its_options_by_name(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("{}")
    with pytest.raises(
        SystemExit, match="ParameterError: num_workers=-1 should be None or a whole"
    ):
        main(["train", "--config", str(file), "--num_workers", "-1"])


def test_a_config_with_texts_for_numbers_trains_as_meant(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "run" / "config.json"
    file.parent.mkdir()
    network = {"data_source": str(photos), "arch": "resnet18", "weights": "null"}
    options = {"epochs": "1", "train_batchnorm": "false"}
    file.write_text(json.dumps({**network, "image_size": "32", "fine_tune": options}))
    with pytest.warns(UserWarning, match="Taken as it is meant: weights 'null' as None"):
        _, history = train_run(file, num_workers=0)
    assert history["epoch"].tolist() == [1]
    config = json.loads(file.read_text())
    assert config["weights"] is None and config["image_size"] == 32
    assert config["fine_tune"]["train_batchnorm"] is False
