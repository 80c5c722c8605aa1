"""The shell: what each command answers, where it says it, and how it ends."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from typer.testing import CliRunner

import resnet_ft
from resnet_ft import Predictor, RunError, build_model, make_sample_dataset, save_checkpoint
from resnet_ft.__main__ import app, main
from resnet_ft.training.options import FineTuneOptions, RunOptions

TINY = ("--arch", "resnet18", "--weights", "none", "--image_size", "32", "--num_workers", "0")
EVIL = "red\x1b[2J\u202egip"


def shell(*arguments, cwd=None, **options):
    """A command in a process of its own."""
    command = [sys.executable, "-m", "resnet_ft", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **options}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def parameters(function):
    return inspect.signature(function).parameters


def test_each_command_has_the_options_and_defaults_of_its_function():
    functions = {
        "sample": resnet_ft.make_sample_dataset,
        "stage": resnet_ft.stage_dataset,
        "audit": resnet_ft.audit_dataset,
        "train": resnet_ft.train_run,
        "evaluate": resnet_ft.evaluate_run,
        "report": resnet_ft.report,
        "predict": Predictor.predict_folder,
    }
    # What is no plain data, or has another name in a shell.
    others = {
        "stage": {"relative_to"},
        "train": {"options", "source"},
        "report": {"predictions", "curve"},
        "predict": {"self", "folder"},
    }
    own = {"train": {"source", "config"}, "predict": {"model", "images"}}
    schema = {
        name: field.default
        for kind in (RunOptions, FineTuneOptions)
        for name, field in kind.__dataclass_fields__.items()
        if name != "data_source"
    }
    for command in app.registered_commands:
        if (name := command.name) not in functions:
            continue
        expected = {
            one.name: one.default
            for one in parameters(functions[name]).values()
            if one.name not in others.get(name, ())
        }
        expected |= schema if name == "train" else {}
        found = {
            one.name: one.default
            for one in parameters(command.callback).values()
            if one.name not in {"context", "json", *own.get(name, ())}
        }
        assert found == expected, name


def test_help_names_every_command_and_loads_no_torch():
    code = "import sys; from resnet_ft.__main__ import main; main(['train', '--help'])"
    code += "; print({'torch', 'pandas', 'numpy'} & {*sys.modules})"
    command = [sys.executable, "-c", code]
    started = time.perf_counter()
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - started < 3  # 0.2 s, if the machine has nothing else to do
    assert answer.endswith("set()\n") and "--label_smoothing" in answer
    listed = shell().stdout
    for name in ("sample", "stage", "audit", "train", "evaluate", "report", "predict", "export"):
        assert f"\n  {name} " in listed
        text = shell(name, "--help", TERM="xterm-256color").stdout
        assert "\x1b" not in text and max(map(len, text.splitlines())) <= 80
