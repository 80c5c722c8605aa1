"""README and docs: every command and every line of Python in them runs, every table is current."""

import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from conftest import ROOT

import resnet_ft
from resnet_ft import fine_tune, make_sample_dataset, pack_dataset

RUN = {f".venv/bin/{name}" for name in ("python", "papermill", "torchrun", "resnet_ft")}
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"),
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "examples").rglob("*.md")),
    )
}


def blocks(language, page):
    return re.findall(rf"^```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def commands():
    lines = [
        line for page in PAGES for block in blocks("bash", page) for line in block.splitlines()
    ]
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
    (targets,) = re.findall(r"^targets=\((.*?)\)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    (repository,) = set(re.findall(r"/github/(\S+?)/blob/", PAGES["README.md"]))
    for command in commands():
        if command[0] == "git":
            assert command[2] == f"https://github.com/{repository}"
        elif command[1].startswith("bench-"):
            results = f"{command[1].removeprefix('bench-')}.json"
            assert (ROOT / "benchmarks" / "results" / results).exists()  # it has been run
        elif command[0] == "make":
            assert command[1] in targets.split() and len(command) == 2
        else:
            assert command[0] in {*RUN, ".venv/bin/jupyter"}


def test_the_readme_fits_one_screen_of_text():
    assert len(PAGES["README.md"].splitlines()) <= 120


def test_the_tables_are_those_that_were_measured(checkout):
    run = [sys.executable, "benchmarks/report.py"]
    subprocess.run(run, cwd=checkout, check=True, capture_output=True)
    for file in ("README.md", "docs/benchmarks.md", "benchmarks/results.md"):
        assert (checkout / file).read_text() == (ROOT / file).read_text()
    assert "later epochs" in PAGES["docs/benchmarks.md"]
    assert "EfficientNet-Lite0, 128 pixels" in PAGES["README.md"]
    for number in re.findall(r"took ([\d.]+) s\b", PAGES["README.md"]):
        assert f"| {number} |" in PAGES["docs/benchmarks.md"]


@pytest.mark.slow
def test_the_headless_commands_work_as_written(checkout):
    for command in commands():
        if command[0] in RUN:
            done = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True)
        if (
            command[0] == ".venv/bin/torchrun" and "train" in command
        ):  # the same run in two processes
            assert "is finished: 2 of 2 epochs are done" in done.stderr
    tables = (checkout / "predictions.csv", checkout / "two.csv")
    assert len({len(table.read_bytes().splitlines()) for table in tables}) == 1
    made = {path.name for path in (checkout / "runs" / "first").iterdir()}
    of_pretrained = {"head_predictions.csv", "head_features.safetensors"}
    assert made - of_pretrained == {
        *("config.json", "images.csv.gz", "history.csv", "best.pt"),
        *("last.0.pt", "last.1.pt"),
        *("evaluation.csv", "evaluation_train.csv", "evaluation_test.csv", "report.html"),
        *("evaluation.safetensors", "evaluation_train.safetensors", "evaluation_test.safetensors"),
        *("calibration.json", "predictions.csv", "predictions.csv.json", "figures"),
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


def run_script(code, folder):
    """What a script prints that is kept in a file, whose workers may be new processes."""
    (folder / "script.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "script.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_the_five_lines_work_as_written(tmp_path):
    (code,) = blocks("python", "README.md")
    assert len(code.strip().splitlines()) == 7  # the import, an empty line, the guard and four more
    imports, lines = code.split('if __name__ == "__main__":')
    unguarded = imports + textwrap.dedent(lines.split("\n", 1)[1])
    assert blocks("python", "docs/index.md") == [unguarded]
    printed = run_script(code, tmp_path)
    assert "fish" in printed and "%" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["docs/training.md", "docs/data.md", "docs/model.md", "docs/use.md"]
)
def test_the_code_of_a_page_works_as_written(page, tmp_path):
    """From its first block to its last, but for the shards of data.md: see below."""
    code = [block for block in blocks("python", page) if "example.org" not in block]
    script = textwrap.indent("\n".join(code), "    ")
    assert run_script(f'if __name__ == "__main__":\n{script}', tmp_path)


@pytest.mark.slow
def test_the_lines_about_shards_work_as_written(tmp_path):
    """But for the address, a smaller, random network and one epoch of smaller images."""
    pack_dataset(make_sample_dataset(tmp_path / "sample"), tmp_path / "shards", max_shard_mb=1)
    quiet = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=tmp_path / "shards"))
    (code,) = (block for block in blocks("python", "docs/data.md") if "example.org" in block)
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
    script = runpy.run_path(str(ROOT / "scripts" / "parameter_table.py"))
    page, rows = PAGES["docs/parameters.md"], script["parameters"](script["NOTEBOOK"])
    assert len(rows) > 20
    assert script["with_table"](page, rows) == page  # else run python scripts/parameter_table.py


def test_the_options_are_those_of_fine_tune():
    _, table = PAGES["docs/parameters.md"].split("## `fine_tune`")
    found = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", table, flags=re.MULTILINE)
    options = list(inspect.signature(fine_tune).parameters.values())[2:]
    defaults = {option.name: json.dumps(option.default) for option in options}
    written = {"null": "None", "false": "False", "true": "True", "[]": "()"}
    assert dict(found) == {name: written.get(text, text) for name, text in defaults.items()}


def test_the_reference_lists_every_public_name_once():
    names = re.findall(r"^ {3}(\w+)$", PAGES["docs/api.md"], flags=re.MULTILINE)
    names += re.findall(r"\b(IMAGENET_\w+)", PAGES["docs/api.md"])
    assert sorted(names) == sorted(resnet_ft.__all__)


@pytest.mark.parametrize("page", PAGES)
def test_the_words_are_those_of_the_field(page):
    found = re.findall(r".*(?:goes on|amid|broke off|a core\b).*", PAGES[page], re.IGNORECASE)
    assert not found  # say resume, mid-epoch, interrupted, per core


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", PAGES[page]):
        path = (ROOT / page).parent / target
        executed = ROOT / target  # docs/notebooks are copies
        assert path.exists() or executed.exists(), target


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
