"""What is asked for is one list, and both Colab and this machine meet it."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import version

import pytest
import yaml
from conftest import ROOT, SHARED
from packaging.requirements import Requirement

import resnet_ft

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIBRARY = [Requirement(line) for line in PROJECT["dependencies"]]
NOTEBOOKS = [Requirement(line) for line in PROJECT["optional-dependencies"]["notebooks"]]


def test_requirements_txt_lists_what_library_and_notebooks_need():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert listed == [str(requirement) for requirement in LIBRARY + NOTEBOOKS]


def test_nothing_is_pinned():
    for requirement in LIBRARY + NOTEBOOKS:
        assert {specifier.operator for specifier in requirement.specifier} == {">="}


def test_colab_meets_every_floor_so_that_nothing_there_is_replaced():
    freeze = SHARED / "colab" / "pip-freeze.txt"
    if not freeze.is_file():
        pytest.skip(f"Colab's list of packages is not at {freeze}")
    lines = [line.split("==") for line in freeze.read_text().splitlines() if "==" in line]
    colab = {name.lower().replace("_", "-"): number for name, number in lines}
    missing = []
    for requirement in LIBRARY + NOTEBOOKS:
        if requirement.name in colab:
            assert requirement.specifier.contains(colab[requirement.name].split("+")[0])
        else:
            missing.append(requirement.name)
    # Colab brings its own Jupyter.
    assert missing == [
        "imagehash",
        "jupyter",
        "papermill",
        "captum",
        "onnx",
        "onnxscript",
        "onnxruntime",
    ]


@pytest.mark.parametrize("requirement", LIBRARY + NOTEBOOKS, ids=str)
def test_what_is_installed_here_meets_every_floor(requirement):
    assert requirement.specifier.contains(version(requirement.name).split("+")[0])


def test_the_version_is_written_once():
    assert PROJECT["dynamic"] == ["version"]  # pyproject.toml reads resnet_ft.__version__
    assert version("resnet_ft") == resnet_ft.__version__
    others = [ROOT / name for name in ("README.md", "CITATION.cff", "docs/conf.py")]
    assert not any(resnet_ft.__version__ in path.read_text() for path in others)


def test_ci_runs_the_tests_on_every_python_that_is_named():
    prefix = "Programming Language :: Python :: 3."
    named = [name.removeprefix(prefix) for name in PROJECT["classifiers"] if prefix in name]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert tested == [f"3.{minor}" for minor in named]
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_ci_runs_the_targets_that_the_script_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    made = {step.split()[1] for step in steps if step.startswith("make ")}
    line = next(
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "targets=" in line
    )
    assert made == set(line.split("(")[1].split(")")[0].split())


@pytest.mark.slow
@pytest.mark.parametrize("required", ["1", ""])
def test_the_browser_tests_say_that_there_is_no_browser_and_are_never_skipped_in_ci(
    tmp_path, required
):
    assert "export RESNET_FT_REQUIRE_BROWSER=1" in (ROOT / ".ci" / "run").read_text()
    test = "tests/test_browser.py::test_a_folder_that_is_not_there_is_named"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        cwd=ROOT,
        env=os.environ | {"PATH": str(tmp_path), "RESNET_FT_REQUIRE_BROWSER": required},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("1 error" if required else "1 skipped") in run.stdout
    assert run.returncode == (1 if required else 0)
    assert "there is no Chromium" in run.stdout or "Playwright is not installed" in run.stdout
