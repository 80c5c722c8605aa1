"""Notebooks in a real browser: a Jupyter server on this machine, and the steps of a person."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT

PICTURES = ROOT / "build" / "browser"  # what the notebooks looked like, for people to look at
WIDTHS = (1400, 400)  # pixels: a laptop and a phone
_REQUIRED = os.environ.get("RESNET_FT_REQUIRE_BROWSER") == "1"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# A camera that shows a test picture, and that every page may use.
_ARGUMENTS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
_TALLEST = 12_000  # pixels of a picture
_MINUTE = 60_000  # Playwright counts milliseconds


def missing(reason: str) -> None:
    """Skip the test with this reason; where a browser is required, fail."""
    (pytest.fail if _REQUIRED else pytest.skip)(reason)


@contextmanager
def chromium(*arguments: str) -> Iterator[Any]:
    """Playwright's browser, with the Chromium or Chrome of this machine."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("Playwright is not installed: pip install playwright")
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        missing("there is no Chromium: on Debian and Ubuntu, apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=[*_ARGUMENTS, *arguments]
        )
        yield browser
        browser.close()


@dataclass(frozen=True)
class Front:
    """How a front end is started and what its pages are made of, as CSS selectors."""

    module: str  # python -m ...
    options: tuple[str, ...]
    address: str  # of a notebook, below that of the server
    cell: str
    prompt: str  # "[3]:", within a cell
    output: str
    ready: str  # is on the page once a kernel has started
    idle: str  # is on the page while the kernel has nothing to do
    scrolled: str  # what holds the cells and scrolls


LAB = Front(
    module="jupyterlab",
    options=("--ServerApp.root_dir={folder}", "--IdentityProvider.token={token}"),
    address="doc/tree/{name}",
    cell=".jp-CodeCell",
    prompt=".jp-InputArea-prompt",
    output=".jp-Cell-outputArea",
    ready="text=| Idle",
    idle='.jp-Notebook-ExecutionIndicator[data-status="idle"]',
    scrolled=".jp-WindowedPanel-outer",
)
CLASSIC = Front(
    module="notebook",
    options=("--NotebookApp.notebook_dir={folder}", "--NotebookApp.token={token}"),
    address="notebooks/{name}",
    cell=".code_cell",
    prompt=".input_prompt",
    output=".output_wrapper",
    ready=".kernel_idle_icon",
    idle=".kernel_idle_icon",
    scrolled="#site",
)
# JupyterLab asks for news, and keeps cells out of the page that are not in sight.
_NO_NEWS = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
_ALL_CELLS = {"windowingMode": "none"}


@contextmanager
def jupyter(front: Front, folder: Path, python: str | Path = sys.executable) -> Iterator[str]:
    """A server on the loopback interface: the address of its notebooks, for `str.format`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, home = secrets.token_hex(16), folder.with_name(f"{folder.name}-{front.module}")
    settings = home / "settings" / "@jupyterlab" / "notebook-extension"
    for file, content in {
        home / "config" / "labconfig" / "page_config.json": _NO_NEWS,
        settings / "tracker.jupyterlab-settings": _ALL_CELLS,
    }.items():
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content))
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    environment.pop("MPLBACKEND", None)
    options = [option.format(folder=folder, token=token) for option in front.options]
    options += ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    log = home / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [python, "-m", front.module, *options],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, log)
        yield f"http://127.0.0.1:{port}/{front.address}?token={token}"
    finally:
        server.terminate()  # and with it the kernels
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
    raise AssertionError(log.read_text())


def copy_notebook(name: str, folder: Path, *, more: str = "", **parameters: object) -> Path:
    """A copy of a notebook, with these values in its cell of parameters and `more` lines below."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for parameter, value in parameters.items():
        line = re.compile(rf"^{parameter} = .*?(?=\s+#|$)", re.MULTILINE)
        cell.source, count = line.subn(lambda _, p=parameter, v=value: f"{p} = {v!r}", cell.source)
        assert count == 1, f"{name} has no parameter {parameter}"
    cell.source += more
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


class OpenNotebook:
    """A notebook in a tab of the browser."""

    def __init__(self, browser: Any, front: Front, address: str, file: Path, folder: Path):
        self.front, self.file = front, file
        self.page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
        self.page.set_default_timeout(_MINUTE)
        self.page.goto(address.format(name=file.relative_to(folder).as_posix()))
        self.code = [c for c in self.saved().cells if c.cell_type == "code"]
        self.page.wait_for_function(
            "([cell, count]) => document.querySelectorAll(cell).length === count",
            arg=[front.cell, len(self.code)],
        )
        self.page.wait_for_selector(front.ready, state="attached")

    def saved(self) -> nbformat.NotebookNode:
        return nbformat.read(self.file, as_version=4)

    def menu(self, menu: str, item: str) -> None:
        """Choose an item of the menu bar."""
        if self.front is CLASSIC:
            for words in (menu, item):
                exactly = re.compile(f"^\\s*{words}\\s*$")
                self.page.locator("#menubar a:visible", has_text=exactly).first.click()
            return
        self.page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{menu}$")).click()
        self.page.locator(".lm-Menu-item", has_text=re.compile(f"^{item}")).first.click()

    def run_all(self) -> None:
        """Start all cells; `finished` waits for them."""
        if self.front is CLASSIC:
            self.menu("Cell", "Run All")
        else:
            self.menu("Run", "Run All Cells")
        self.page.wait_for_function(
            "cell => [...document.querySelectorAll(cell)].some(c => c.textContent.includes('[*]'))",
            arg=f"{self.front.cell} {self.front.prompt}",
        )

    def interrupt(self) -> None:
        self.menu("Kernel", "Interrupt Kernel")

    def finished(self, minutes: float = 3) -> nbformat.NotebookNode:
        """Wait until the kernel has nothing to do; the notebook as it was saved then."""
        self.page.wait_for_function(
            """([prompt, idle]) => document.querySelector(idle) &&
              ![...document.querySelectorAll(prompt)].some(p => p.textContent.includes('[*]'))""",
            arg=[f"{self.front.cell} {self.front.prompt}", self.front.idle],
            timeout=minutes * _MINUTE,
        )
        before = self.file.stat().st_mtime_ns
        self.page.locator(self.front.cell).first.click()
        self.page.keyboard.press("Control+s")
        wait_until(lambda: self.file.stat().st_mtime_ns != before, "the notebook is not saved")
        time.sleep(0.3)  # until the file is complete
        return self.saved()

    def cell(self, piece: str) -> Any:
        """The one code cell whose source holds these words."""
        (number,) = (i for i, cell in enumerate(self.code) if piece in cell.source)
        return self.page.locator(self.front.cell).nth(number)

    def images(self, piece: str) -> list[str]:
        """What the images below a cell are, to see whether they change."""
        return self.cell(piece).locator("img").evaluate_all("images => images.map(i => i.src)")

    def look(self) -> None:
        """Take a moment, as people do: a widget that was just used is drawn anew."""
        self.page.wait_for_timeout(1000)

    def photograph(self, name: str) -> None:
        """Keep pictures of the whole notebook as a laptop and as a phone show it."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        for width in WIDTHS:
            self.page.set_viewport_size({"width": width, "height": 900})
            height = self.page.evaluate(
                "place => document.querySelector(place).scrollHeight", self.front.scrolled
            )
            self.page.set_viewport_size({"width": width, "height": min(height + 200, _TALLEST)})
            self.page.wait_for_timeout(500)  # until images have their new size
            self.page.screenshot(path=PICTURES / f"{name}_{width}.png")
        self.page.set_viewport_size({"width": WIDTHS[0], "height": 900})


def errors(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The outputs that are errors."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if output.output_type == "error"]


def unfinished(notebook: nbformat.NotebookNode) -> list[str]:
    """The code cells that were not executed."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell.source for cell in cells if cell.execution_count is None]


def text(notebook: nbformat.NotebookNode) -> str:
    """What the cells show, as one text."""
    return json.dumps([cell.get("outputs", []) for cell in notebook.cells], ensure_ascii=False)


def wait_until(condition: Callable[[], object], otherwise: str, seconds: float = 60) -> None:
    """Wait for something that happens outside of the page."""
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"After {seconds:.0f} seconds, {otherwise}.")
