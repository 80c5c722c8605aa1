"""Every sentence of the README that can be checked, and every command that can be run."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import nbformat
import pytest
from conftest import ROOT

from resnet_ft import make_sample_dataset, pack_dataset

RUN = {".venv/bin/python", ".venv/bin/papermill", ".venv/bin/torchrun"}
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def checkout(tmp_path):
    """The project as a newcomer has it, with the virtual environment of this one."""
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def test_the_commands_are_those_that_ci_and_the_tests_run():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    ci = [line.split(" #")[0] for line in lines]
    for command in commands():
        if command[1].startswith("bench-"):
            results = f"{command[1].removeprefix('bench-')}.json"
            assert (ROOT / "benchmarks" / "results" / results).exists()  # it has been run
        elif command[0] == "make":
            assert " ".join(command) in ci
        else:
            assert command[0] in {*RUN, ".venv/bin/jupyter"}


def test_the_tables_are_those_that_were_measured(checkout):
    run = [sys.executable, "benchmarks/report.py"]
    subprocess.run(run, cwd=checkout, check=True, capture_output=True)
    assert (checkout / "README.md").read_text() == README
    report = "benchmarks/results.md"
    assert (checkout / report).read_text() == (ROOT / report).read_text()
    assert "later epochs" in README


@pytest.mark.slow
def test_the_headless_commands_work_as_written(checkout):
    for command in commands():
        if command[0] in RUN:
            done = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True)
    assert "is finished: 2 of 2 epochs are done" in done.stdout  # the same run in two processes
    made = {path.name for path in (checkout / "runs" / "first").iterdir()}
    assert made - {"head_predictions.csv"} == {  # which only pretrained weights have
        *("config.json", "history.csv", "best.pt"),
        *("last.0.pt", "last.1.pt"),
        *("evaluation.csv", "predictions.csv", "figures"),
    }
    assert (checkout / "data" / "sample").is_dir()


@pytest.mark.slow
def test_jupyter_lab_serves_the_notebooks(checkout):
    (command,) = (command for command in commands() if command[0] == ".venv/bin/jupyter")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    server = subprocess.Popen([*command, *options, "--IdentityProvider.token=test"], cwd=checkout)
    try:
        names = listed(f"http://127.0.0.1:{port}/api/contents?token=test", deadline_s=60)
        assert "03_train.ipynb" in names
    finally:
        server.terminate()
        server.wait(timeout=30)


def listed(url, deadline_s):
    """The names of the files that a Jupyter server lists, as soon as it answers."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return {entry["name"] for entry in json.load(answer)["content"]}
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


@pytest.mark.slow
def test_the_five_lines_work_as_written(tmp_path):
    code = blocks("python")[-1]
    assert len(code.strip().splitlines()) == 6  # the import, an empty line and four more
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "class_name" in run.stdout and "fish" in run.stdout


@pytest.mark.slow
def test_the_lines_about_shards_work_as_written(tmp_path):
    """But for the address, a smaller, random network and one epoch of smaller images."""
    pack_dataset(make_sample_dataset(tmp_path / "sample"), tmp_path / "shards", max_shard_mb=1)
    quiet = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=tmp_path / "shards"))
    code = blocks("python")[0]
    for written, tried in {
        "https://example.org/photos-shards": f"http://127.0.0.1:{server.server_port}",
        "/scratch": str(tmp_path / "scratch"),
        "cache_size_gb=50": "image_size=32",
        '"resnet50", len(dataloaders["train"].dataset.classes)': '"resnet18", 4, weights=None',
        "num_epochs=10": "num_epochs=1",
    }.items():
        assert written in code
        code = code.replace(written, tried)
    with server:
        Thread(target=server.serve_forever, daemon=True).start()
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True)
        server.shutdown()
    assert (tmp_path / "runs" / "large" / "best.pt").exists()


@pytest.mark.slow
def test_the_library_installs_without_the_checkout(tmp_path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
    subprocess.run([*pip, ROOT], check=True, capture_output=True)
    code = """
import resnet_ft
for name in resnet_ft.__all__:
    getattr(resnet_ft, name)
print(resnet_ft.__file__)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith(str(target))


def test_the_parameters_are_those_of_the_notebook():
    notebook = nbformat.read(ROOT / "notebooks" / "03_train.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if cell.metadata.get("tags") == ["parameters"])
    expected = []
    for line in cell.source.splitlines():
        assignment, comment = line.split("  # ", 1)
        name, value = assignment.split(" = ", 1)
        expected.append((name, value, comment))
    found = re.findall(r"^\| `(\w+)` \| `(.+?)` \| (.+) \|$", README, flags=re.MULTILINE)
    assert found == expected


def test_links_and_pictures_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).is_file(), target


@pytest.mark.slow
def test_the_widgets_work_with_ipywidgets_7(tmp_path):
    """The version of Colab, laid over the one that is installed."""
    packages = ["ipywidgets==7.7.1", "ipython_genutils==0.2.0"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path]
    subprocess.run([*pip, *packages], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    check = "import ipywidgets; assert ipywidgets.__version__ == '7.7.1'"
    subprocess.run([sys.executable, "-c", check], env=environment, check=True)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            ROOT / "tests" / "widgets",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
