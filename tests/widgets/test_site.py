"""The page of a model in a notebook."""

import sys
import types
import urllib.request

import pytest

from resnet_ft import RunError, show_site
from resnet_ft.widgets import site


def page(folder):
    folder.mkdir()
    (folder / "index.html").write_text("<title>ants or bees</title>")
    return folder


def test_a_page_is_served_while_the_kernel_runs(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(site, "display", shown.append)
    for _ in range(2):
        show_site(page(tmp_path / "site") if not shown else tmp_path / "site", height=400)
    first, second = shown
    assert "127.0.0.1" in first.src and first.height == 400
    assert urllib.request.urlopen(first.src).read() == b"<title>ants or bees</title>"
    assert second.src == first.src  # and not by another server


def test_a_notebook_that_runs_unattended_says_where_the_page_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(site, "runs_headless", lambda: True)
    show_site(page(tmp_path / "site"))
    assert str(tmp_path / "site") in capsys.readouterr().out


def test_colab_shows_a_port_of_its_machine(tmp_path, monkeypatch):
    shown = []
    output = types.ModuleType("google.colab.output")
    output.serve_kernel_port_as_iframe = lambda port, height: shown.append((port, height))
    colab = types.ModuleType("google.colab")
    colab.output = output
    for module in (types.ModuleType("google"), colab, output):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    show_site(page(tmp_path / "site"), height=400)
    ((port, height),) = shown
    assert height == "400"
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/").status == 200


def test_a_folder_without_a_page_is_refused(tmp_path):
    with pytest.raises(RunError, match="no page in"):
        show_site(tmp_path)
