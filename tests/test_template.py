"""The template's owner is named in badges, links and setup cells, and all of them agree."""

import re
import runpy
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

import resnet_ft

template = runpy.run_path(str(ROOT / "scripts" / "template.py"))
FILES = template["files"]()


NAMED = "OWNER/resnet_ft", template["requirement"]("OWNER/resnet_ft")


def repositories(text: str) -> set[str]:
    """The repositories that a file names, in links and in what its setup cell installs."""
    release = re.compile(r"resnet_ft\[colab\] @ git\+https://github.com/(.+)@v[\d.]+")
    return {release.sub(r"\1", name) for name in template["sources"](text)}


def test_badges_links_and_setup_cells_agree():
    named = set().union(*(repositories(path.read_text()) for path in FILES))
    sources = [name for name in named if name.startswith("/content/drive")]
    assert len(named) - len(sources) == 1
    assert len(sources) <= 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_names_the_repository(path):
    assert template["sources"](path.read_text())


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the template writes, in a new repository."""
    for folder in ("notebooks", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "resnet_ft").mkdir()
    for name in (*template["LINKING"], "Makefile", "resnet_ft/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def make_template(checkout, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", "template", *words, f"PYTHON={sys.executable}"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("source", [None, "/content/drive/MyDrive/Colab Notebooks/resnet_ft"])
def test_one_command_rewrites_them_all(checkout, source):
    words = [f"SOURCE={source}"] if source else []
    assert make_template(checkout, "REPO=ada/flowers", *words).returncode == 0
    release = f"resnet_ft[colab] @ git+https://github.com/ada/flowers@v{resnet_ft.__version__}"
    expected = {"ada/flowers", f"{source}[colab]" if source else release}
    for path in FILES:
        text = (checkout / path.relative_to(ROOT)).read_text()
        found = template["sources"](text)
        assert found <= expected and found
        assert template["rewrite"](text, *NAMED) == template["rewrite"](path.read_text(), *NAMED)


@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com/ada/flowers",
        "https://github.com/ada/flowers.git",
        "https://ada:secret@github.com/ada/flowers.git/",
        "git@github.com:ada/flowers.git",
        "ssh://git@github.com/ada/flowers.git",
        "ssh://git@github.com:22/ada/flowers",
    ],
)
def test_without_a_name_the_repository_is_that_of_the_remote(checkout, remote):
    subprocess.run(["git", "-C", checkout, "remote", "add", "origin", remote], check=True)
    run = make_template(checkout)
    assert run.returncode == 0, run.stderr
    assert f"git push origin main v{resnet_ft.__version__}" in run.stdout
    for path in FILES:
        assert repositories((checkout / path.relative_to(ROOT)).read_text()) == {"ada/flowers"}


@pytest.mark.parametrize(
    ("remote", "message"),
    [
        (None, "no remote named origin"),
        ("https://gitlab.com/ada/flowers", "gitlab.com/ada/flowers, is not a repository on GitHub"),
        ("https://ada:secret@example.org/github.com/ada/flowers", "is not a repository on GitHub"),
        ("https://notgithub.com/ada/flowers", "is not a repository on GitHub"),
    ],
)
def test_where_the_remote_is_none_of_github_nothing_is_written(checkout, remote, message):
    if remote:
        subprocess.run(["git", "-C", checkout, "remote", "add", "origin", remote], check=True)
    run = make_template(checkout)
    assert run.returncode != 0
    assert message in run.stderr and "make template REPO=owner/name" in run.stderr
    assert "secret" not in run.stderr
    for path in FILES:
        assert (checkout / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_lint_warns_while_no_repository_is_named(checkout):
    check = [sys.executable, "scripts/template.py", "--check"]
    assert make_template(checkout, "REPO=OWNER/resnet_ft").returncode == 0
    before = subprocess.run(check, cwd=checkout, capture_output=True, text=True, check=True)
    assert "lead to OWNER/resnet_ft" in before.stderr and "make template" in before.stderr
    assert make_template(checkout, "REPO=ada/flowers").returncode == 0
    after = subprocess.run(check, cwd=checkout, capture_output=True, text=True, check=True)
    assert after.stderr == ""
    assert "template.py --check" in (ROOT / "Makefile").read_text().split("\ntest:")[0]


def test_a_repository_that_is_none_is_refused():
    run = subprocess.run(
        [sys.executable, "scripts/template.py", "https://github.com/a/b"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0 and "owner/name" in run.stderr
