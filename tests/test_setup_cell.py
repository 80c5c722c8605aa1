"""The first cell of every notebook: in Colab it installs the library, where that is missing."""

import subprocess
import sys
import sysconfig

import pytest
from conftest import ROOT

import resnet_ft

RUN_THE_CELL = """
import json, re, sys, types
from IPython.core.interactiveshell import InteractiveShell

notebook, source, place = sys.argv[1:]
cell = "".join(json.load(open(notebook))["cells"][1]["source"])
cell = re.sub('SOURCE = ".*"', f'SOURCE = "{source}"', cell)
if place == "colab":
    sys.modules["google.colab"] = types.ModuleType("google.colab")
InteractiveShell.instance().run_cell(cell).raise_error()
try:
    import resnet_ft
    print("imported from", resnet_ft.__file__)
except ImportError:
    print("not installed")
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["colab", "elsewhere"])
def test_in_colab_the_library_is_installed_and_nothing_else(tmp_path, place):
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "a copy"], check=True)
    # A new environment that sees all packages of this one but the library, as Colab's does.
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv/bin/python", "-m", "pip"]
    subprocess.run([*pip, "uninstall", "-q", "-y", "setuptools"], check=True)  # it would hide ours
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "colab.pth").write_text(sysconfig.get_path("purelib"))
    before = {path.name for path in packages.iterdir()}
    notebook = ROOT / "notebooks" / "01_mount_drive.ipynb"
    run = subprocess.run(
        [tmp_path / "venv/bin/python", "-c", RUN_THE_CELL, notebook, tmp_path / "a copy", place],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    new = {path.name for path in packages.iterdir()} - before - {"__pycache__"}
    if place == "colab":
        assert f"imported from {packages}" in run.stdout, run.stdout + run.stderr
        assert new == {"resnet_ft", f"resnet_ft-{resnet_ft.__version__}.dist-info"}
    else:
        assert "not installed" in run.stdout
        assert new == set()
