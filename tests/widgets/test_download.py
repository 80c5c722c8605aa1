"""The button that downloads a file."""

import sys
import types

import ipywidgets
import pytest

from resnet_ft import RunError, download_button


def test_in_colab_the_button_downloads_the_file(tmp_path, monkeypatch):
    sent = []
    google, colab = types.ModuleType("google"), types.ModuleType("google.colab")
    files = types.ModuleType("google.colab.files")
    files.download, google.colab, colab.files = sent.append, colab, files
    for module in (google, colab, files):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / "best.pt").write_bytes(bytes(2_300_000))
    widget = download_button(tmp_path / "best.pt")
    (button, _) = widget.children
    assert isinstance(button, ipywidgets.Button)
    assert button.description == "Download best.pt (2.3 MB)"
    button.click()
    assert sent == [str(tmp_path / "best.pt")]


def test_a_file_that_is_not_there_has_no_button(tmp_path):
    with pytest.raises(RunError, match="There is no file"):
        download_button(tmp_path / "best.pt")
