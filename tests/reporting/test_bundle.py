"""A model to hand on: a .zip that needs no torch, and a repository of the Hugging Face Hub."""

import json
import os
import subprocess
import sys
import venv
import zipfile

import pytest
from conftest import ROOT
from exported import colours_run, hub_double

from resnet_ft import Predictor, bundle

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow

PUSH = """
import sys
from resnet_ft import CheckpointError, Predictor, RunError, push_to_hub
run, repository, image = sys.argv[1:]
try:
    print(push_to_hub(run, repository))
    print(Predictor.from_hub(repository).predict(image).class_name)
    Predictor.from_hub("somebody/else")
except (CheckpointError, RunError) as error:
    print(error)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return colours_run(tmp_path_factory.mktemp("bundle"))


def photographs(run):
    return sorted((run.folder.parent / "photos" / "Val").rglob("*.png"))


def test_the_bundle_predicts_in_an_environment_without_torch(run, tmp_path):
    archive = bundle(run)
    assert archive == run.folder / "run.zip"
    with zipfile.ZipFile(archive) as content:
        names = {"best.pt", "model.onnx", "model_card.md", "report.html", "predict.py"}
        assert {*content.namelist()} == {f"run/{name}" for name in names}
        content.extractall(tmp_path)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = ["onnxruntime", "pillow", "numpy"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    installed = subprocess.run(
        [python, "-m", "pip", "list"], capture_output=True, text=True, check=True
    )
    assert "torch" not in installed.stdout
    files = photographs(run)
    done = subprocess.run(
        [python, "predict.py", *files],
        cwd=tmp_path / "run",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    predictor = Predictor.load(run)
    for line, file in zip(done.stdout.splitlines(), files, strict=True):
        path, *answers = line.split("\t")
        assert path == str(file)
        for answer, (name, probability) in zip(answers, predictor.predict(file).top, strict=True):
            assert answer.split()[0] == name
            assert float(answer.split()[1]) == pytest.approx(probability, abs=1e-3)


def push(hub, run, name, folder, token):
    environment = {
        **{"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(folder)},
        **{"HF_TOKEN": token, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"},
    }
    done = subprocess.run(
        [sys.executable, "-c", PUSH, run.folder, name, photographs(run)[0]],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_card_from_before_the_model_is_taken_and_warned_of(run, tmp_path, recwarn):
    card = run.folder / "model_card.md"
    card.write_text("mine")
    os.utime(card, (0, 0))
    archive = bundle(run, tmp_path / "of.zip")
    card.unlink()
    assert zipfile.ZipFile(archive).read("run/model_card.md") == b"mine"
    (warning,) = (str(one.message) for one in recwarn if "older" in str(one.message))
    assert f"{card} is older than best.pt" in warning


def test_a_pushed_model_is_private_and_comes_back(run, tmp_path):
    """The Hub itself is untried here: a double on the loopback interface stands for it."""
    with hub_double() as hub:
        said = push(hub, run, "user/colours", tmp_path, "hf_test")
        address, name, refused = said.splitlines()
        assert address.endswith("/user/colours") and name == "blue"
        assert refused.startswith("somebody/else has no best.pt that can be downloaded")
        repository = hub.repositories["user/colours"]
        files = repository["files"]
        assert repository["private"] is True
        assert (
            {"README.md", "best.pt", "config.json"}
            <= {*files}
            <= {*("README.md", "best.pt", "config.json", "model.onnx", ".gitattributes")}
        )
        assert json.loads(files["config.json"])["classes"] == ["blue", "green", "red"]
        for content in files.values():
            assert str(run.folder.parent).encode() not in content
        assert hub.validated and hub.validated[0].startswith("---\nlibrary_name: resnet_ft")
        said = push(hub, run, "user/colours", tmp_path, "hf_wrong")
        assert "user/colours could not be uploaded" in said and "hf auth login" in said
        repository["private"] = False
        assert "private=False" in push(hub, run, "user/colours", tmp_path, "hf_test")
