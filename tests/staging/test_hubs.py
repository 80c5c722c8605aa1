"""Data sets of Kaggle and Hugging Face. The servers themselves are untried here."""

import importlib.util
import os
import subprocess
import sys

import pytest
from conftest import ROOT, write_image

from resnet_ft import ParameterError, decisions_file, stage_dataset


@pytest.mark.parametrize("source", ["kaggle:flowers", "hf:", "hf:a/b/c", "KAGGLE:a/b"])
def test_a_name_of_another_form_is_refused(source):
    with pytest.raises(ParameterError, match="kaggle:owner/name"):
        stage_dataset(source)


@pytest.mark.skipif(importlib.util.find_spec("kagglehub") is not None, reason="it is installed")
def test_a_missing_package_is_named():
    with pytest.raises(ParameterError, match="pip install kagglehub"):
        stage_dataset("kaggle:owner/name")


def test_decisions_about_each_have_a_file_of_their_own(tmp_path):
    files = {decisions_file(tmp_path, source) for source in ("hf:a/b", "hf:c/b", "kaggle:a/b")}
    assert len(files) == 3 and all(file.parent == tmp_path for file in files)


STAGE = """
import sys
from resnet_ft import DatasetError, index_dataset, stage_dataset
print(index_dataset(stage_dataset("hf:owner/photos")).counts())
try:
    stage_dataset("hf:owner/other")
except DatasetError as error:
    print(error)
"""


def test_a_data_set_of_hugging_face_is_used_where_its_package_keeps_it(tmp_path):
    """A cache as huggingface_hub leaves it, whose files are links, and no connection."""
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "hub" / "datasets--owner--photos"
    for number in range(8):
        blob = write_image(repository / "blobs" / f"{number}.png").rename(
            repository / "blobs" / f"{number}"
        )
        place = ("Train", "Val")[number % 2], ("ants", "bees")[number // 4]
        link = repository.joinpath("snapshots", "c" * 40, *place, f"{number}.png")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", STAGE],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ants" in run.stdout and "bees" in run.stdout
    assert "hf:owner/other could not be downloaded" in run.stdout
    assert "a private data set needs HF_TOKEN" in run.stdout
