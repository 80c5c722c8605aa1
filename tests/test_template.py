"""The template's owner is named in badges, links and setup cells, and all of them agree."""

import runpy
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

template = runpy.run_path(str(ROOT / "scripts" / "template.py"))
FILES = template["files"]()


def test_badges_links_and_setup_cells_agree():
    named = set().union(*(template["sources"](path.read_text()) for path in FILES))
    repositories = {name.removeprefix("git+https://github.com/") for name in named}
    sources = [name for name in repositories if name.startswith("/content/drive")]
    assert len(repositories) - len(sources) == 1
    assert len(sources) <= 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_names_the_repository(path):
    assert template["sources"](path.read_text())


@pytest.mark.parametrize("source", [None, "/content/drive/MyDrive/Colab Notebooks/resnet_ft"])
def test_one_command_rewrites_them_all(tmp_path, source):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in (*template["LINKING"], "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    command = ["make", "template", "REPO=ada/flowers", *([f"SOURCE={source}"] if source else [])]
    subprocess.run([*command, f"PYTHON={sys.executable}"], cwd=tmp_path, check=True)
    expected = {"ada/flowers", source or "git+https://github.com/ada/flowers"}
    for path in FILES:
        text = (tmp_path / path.relative_to(ROOT)).read_text()
        found = template["sources"](text)
        assert found <= expected and found
        back = template["rewrite"](
            text, "OWNER/resnet_ft", "git+https://github.com/OWNER/resnet_ft"
        )
        original = template["rewrite"](
            path.read_text(), "OWNER/resnet_ft", "git+https://github.com/OWNER/resnet_ft"
        )
        assert back == original


def test_a_repository_that_is_none_is_refused():
    run = subprocess.run(
        [sys.executable, "scripts/template.py", "https://github.com/a/b"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0 and "owner/name" in run.stderr
