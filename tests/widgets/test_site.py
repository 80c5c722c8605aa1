"""The page of a model in a notebook."""

import sys
import types
import urllib.request

import pytest

from resnet_ft import RunError, show_site


def page(folder):
    folder.mkdir()
    (folder / "index.html").write_text("<title>ants or bees</title>")
    return folder


def test_a_page_is_served_while_the_kernel_runs(tmp_path):
    frame = show_site(page(tmp_path / "site"), height=400)
    assert "127.0.0.1" in frame.src and frame.height == 400
    assert urllib.request.urlopen(frame.src).read() == b"<title>ants or bees</title>"
    assert show_site(tmp_path / "site").src == frame.src  # and not by another server


def test_colab_shows_a_port_of_its_machine(tmp_path, monkeypatch):
    shown = []
    output = types.ModuleType("google.colab.output")
    output.serve_kernel_port_as_iframe = lambda port, height: shown.append((port, height))
    colab = types.ModuleType("google.colab")
    colab.output = output
    for module in (types.ModuleType("google"), colab, output):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert show_site(page(tmp_path / "site"), height=400) is None
    ((port, height),) = shown
    assert height == "400"
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/").status == 200


def test_a_folder_without_a_page_is_refused(tmp_path):
    with pytest.raises(RunError, match="no page in"):
        show_site(tmp_path)
