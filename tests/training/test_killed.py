"""A run that is killed goes on as if nothing had happened, to the last bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import killed
import pandas as pd
import pytest
import torch

from resnet_ft import Run

PROGRAM = Path(killed.__file__)


@pytest.fixture(autouse=True)
def heeded():
    """Ctrl-C as in a terminal, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(name, run_dir, **options):
    command = [sys.executable, str(PROGRAM), name, str(run_dir), json.dumps(options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes)


def steps_until(process, number):
    """The lines about complete steps, up to that number or the end of the process."""
    lines = []
    while len(lines) < number and (line := process.stdout.readline()):
        lines += [line.split()] if line[0].isdigit() else []
    return lines


def assert_the_same(run, expected):
    """In weights, history, best and generators: in all that is saved but for the clock."""
    (_, found), (_, whole) = run.resume_state(), expected.resume_state()
    for part in ("model", "optimizer", "scheduler", "callbacks"):
        assert_equal(found[part], whole[part])
    for name in ("epoch", "phase", "step", "is_best", "should_stop"):
        assert_equal(found["progress"][name], whole["progress"][name])
    for name in ("python", "numpy", "torch"):  # those of loaders seed workers that live no longer
        assert_equal(*(one["progress"]["rng"][name] for one in (found, whole)))
    assert_equal(found["best"]["weights"], whole["best"]["weights"])
    pd.testing.assert_frame_equal(
        run.history.drop(columns="seconds"), expected.history.drop(columns="seconds")
    )
    best, expected_best = (torch.load(one.best, weights_only=True) for one in (run, expected))
    assert_equal(best["state_dict"], expected_best["state_dict"])


def assert_equal(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills", "longest", "seconds"), [("loop", 20, 0.5, 0.3), ("recipe", 4, 4, 0.6)]
)
def test_a_run_killed_at_random_moments_ends_as_an_undisturbed_one(
    name, kills, longest, seconds, photos, tmp_path
):
    options = {"photos": str(photos)} if name == "recipe" else {}
    assert start(name, tmp_path / "whole", **options).wait() == 0
    draw, left_amid_an_epoch = random.Random(0), 0
    for _ in range(kills):
        process = start(name, tmp_path / "run", seconds=seconds, **options)
        assert steps_until(process, 1), process.stderr.read()
        time.sleep(draw.uniform(0, longest))
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)
        _, saved = Run(tmp_path / "run").resume_state()
        left_amid_an_epoch += saved["progress"]["step"] > 0
    assert left_amid_an_epoch >= kills / 4
    assert start(name, tmp_path / "run", **options).wait() == 0
    assert_the_same(Run(tmp_path / "run"), Run(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_keeps_the_step_that_it_is_at(number, tmp_path):
    assert start("loop", tmp_path / "whole").wait() == 0
    for at in (3, 11):  # in training, in validation
        process = start("loop", tmp_path / "run", seconds=0.05)
        lines = steps_until(process, at)
        process.send_signal(number)
        lines += steps_until(process, 99)
        assert process.wait() in (-number, 1), process.stderr.read()
        _, saved = Run(tmp_path / "run").resume_state()
        position = (saved["progress"][name] for name in ("epoch", "phase", "step"))
        assert [str(part) for part in position] == lines[-1]
    assert start("loop", tmp_path / "run").wait() == 0
    assert_the_same(Run(tmp_path / "run"), Run(tmp_path / "whole"))


@pytest.mark.slow
def test_a_run_whose_workers_are_told_to_end_too_loses_no_more_than_the_present_step(
    photos, tmp_path
):
    """As torchrun does it. What reads images is gone, so that step cannot be completed."""
    process = start("recipe", tmp_path / "run", photos=str(photos), seconds=0.3)
    lines = steps_until(process, 6)
    os.killpg(process.pid, signal.SIGTERM)
    lines += steps_until(process, 99)
    assert process.wait() in (-signal.SIGTERM, 1), process.stderr.read()
    _, saved = Run(tmp_path / "run").resume_state()
    position = (saved["progress"][name] for name in ("epoch", "phase", "step"))
    assert [str(part) for part in position] in lines[-2:]


@pytest.mark.parametrize("at", [(2, "train", 4), (1, "val", 2), (3, "val", 3), (4, "train", 9)])
def test_ctrl_c_ends_a_run_after_the_step_and_the_next_call_resumes(at, tmp_path):
    killed.loop(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        killed.loop(tmp_path / "run", interrupt_at=at)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model, history = killed.loop(tmp_path / "run")
    assert_the_same(Run(tmp_path / "run"), Run(tmp_path / "whole"))
    best = torch.load(Run(tmp_path / "run").best, weights_only=True)
    assert_equal(model.state_dict(), best["state_dict"])
    assert history["epoch"].tolist() == [1, 2, 3, 4]


def test_a_process_in_the_background_continues_to_ignore_ctrl_c(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, history = killed.loop(tmp_path / "run", interrupt_at=(2, "train", 4))
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
