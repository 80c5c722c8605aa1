"""What is asked for is one list, and both Colab and this machine meet it."""

import tomllib
from importlib.metadata import version

import pytest
from conftest import ROOT, SHARED
from packaging.requirements import Requirement

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
    assert missing == ["imagehash", "jupyter", "papermill"]  # Colab brings its own Jupyter


@pytest.mark.parametrize("requirement", LIBRARY + NOTEBOOKS, ids=str)
def test_what_is_installed_here_meets_every_floor(requirement):
    assert requirement.specifier.contains(version(requirement.name).split("+")[0])
