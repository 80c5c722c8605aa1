"""The first cell of every notebook: in Colab it installs the library, where that is missing."""

import json
import os
import re
import subprocess
import sys
import sysconfig

import pytest
from conftest import ROOT, SHARED

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


def environment() -> dict[str, str]:
    """That of this process, without the folders in which its Python looks for modules first."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


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
        [
            tmp_path / "venv/bin/python",
            "-c",
            RUN_THE_CELL,
            notebook,
            f"{tmp_path}/a copy[colab]",
            place,
        ],
        cwd=tmp_path,
        env=environment(),
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


def setup_cell() -> str:
    notebook = json.loads((ROOT / "notebooks" / "01_mount_drive.ipynb").read_text())
    return "".join(notebook["cells"][1]["source"])


def test_a_release_is_installed_and_not_what_a_branch_holds_by_then():
    (source,) = re.findall('SOURCE = "(.*)"', setup_cell())
    assert source.startswith("/content/drive") or source.endswith(f"@v{resnet_ft.__version__}")
    assert "[colab]" in source  # HEIC, and the models of timm


@pytest.fixture
def colab_image(tmp_path):
    """An environment in which pip finds the names and versions of all packages of Colab's image."""
    freeze = SHARED / "colab" / "pip-freeze.txt"
    if not freeze.is_file():
        pytest.skip(f"Colab's list of packages is not at {freeze}")
    listed = [line.split("==") for line in freeze.read_text().splitlines() if line[:1] not in "#"]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "image"], check=True)
    (packages,) = (tmp_path / "image").glob("lib/python*/site-packages")
    for name, version in listed:
        if name in ("pip", "setuptools"):  # they are real
            continue
        information = packages / f"{name.replace('-', '_')}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (information / "INSTALLER").write_text("pip\n")
        (information / "RECORD").touch()
    return tmp_path / "image" / "bin" / "python"


def installed(python) -> dict[str, str]:
    run = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"],
        env=environment(),
        capture_output=True,
        check=True,
    )
    return {package["name"]: package["version"] for package in json.loads(run.stdout)}


@pytest.mark.slow
@pytest.mark.parametrize("also", [None, "onnx", "onnxruntime"])
def test_nothing_of_colabs_image_is_replaced(tmp_path, colab_image, also):
    """The cell's own commands; and what would replace protobuf without the constraints."""
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "a copy"], check=True)
    before = installed(colab_image)
    commands = re.findall(r"%pip (.*)", setup_cell())
    assert len(commands) == 2 and all("constraints.txt" in command for command in commands)
    for line in commands:
        command = line.replace("{SOURCE}", f"{tmp_path}/a copy[colab]")
        more = f' "{also}"' if also and command.startswith("install") else ""
        subprocess.run(
            f'"{colab_image}" -m pip {command}{more}',
            shell=True,
            cwd=tmp_path,
            env=environment(),
            check=True,
        )
    after = installed(colab_image)
    assert {name: after.get(name) for name in before} == before
    new = set(after) - set(before)
    assert {"resnet_ft", "ImageHash", "pillow_heif"} <= new
    assert also is None or also in new
