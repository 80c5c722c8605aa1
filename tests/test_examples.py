"""The scripts in examples/ that train run as they are, on the sample data, and learn something."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

SERVERS = {"serve", "gradio_page"}  # see test_serving.py
EXAMPLES = sorted(one for one in (ROOT / "examples").glob("*.py") if one.stem not in SERVERS)


def test_there_are_four_examples():
    assert len(EXAMPLES) == 4


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
    elif script.stem == "compare_exports":
        *_, header, checkpoint, fp32, fp16, int8, safetensors, _ = printed.splitlines()
        assert header.split()[0] == "agreement"
        for row in (fp32, fp16, safetensors):
            assert float(row.split()[1]) >= 0.99
        megabytes = [float(row.split()[4]) for row in (checkpoint, fp32, fp16, int8)]
        assert megabytes[2] < 0.55 * megabytes[1] and megabytes[3] < 0.3 * megabytes[1]
        accuracy = float(checkpoint.split()[3])
    else:
        accuracy = float(re.findall(r"accuracy ([\d.]+)%", printed)[-1]) / 100
        assert re.search(r"^\S+ >?[\d.]+%, \S+ <?[\d.]+%", printed, re.MULTILINE)
    assert accuracy > 0.4  # guessing among four classes gives 0.25
