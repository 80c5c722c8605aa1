"""The scripts in examples/ that train run as they are, on the sample data, and learn something."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("own_*.py"))


def test_there_are_three_examples():
    assert len(EXAMPLES) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all: the sample data are drawn and decoded once."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_runs_as_it_is(script, folder):
    run = subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    printed = run.stdout
    if script.stem == "own_callback_and_metric":
        *_, last = printed.splitlines()
        _, _, accuracy, train_top2, val_top2, norm = map(float, last.split())
        assert accuracy <= val_top2 <= 1 and train_top2 > 0.5 and norm > 0
    else:
        accuracy = float(re.findall(r"accuracy ([\d.]+)%", printed)[-1]) / 100
        assert re.search(r"^\S+ >?[\d.]+%, \S+ <?[\d.]+%", printed, re.MULTILINE)
    assert accuracy > 0.4  # guessing among four classes gives 0.25
