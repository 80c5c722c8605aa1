"""What a person chose last is used by the next notebook, in a live front end only."""

import json

import pytest
from IPython.core.interactiveshell import InteractiveShell

from resnet_ft import last_choice, remember


@pytest.fixture
def live(monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", InteractiveShell)


@pytest.fixture
def headless(monkeypatch):
    shell = InteractiveShell()
    shell.get_parent = lambda: {"content": {"allow_stdin": False}}
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)


@pytest.mark.usefixtures("live")
def test_an_empty_field_is_the_last_choice_and_a_line_says_so(tmp_path, capsys):
    assert last_choice(tmp_path, "data_dir", None) == "sample"
    assert "data_dir is empty: 'sample' is used, by default." in capsys.readouterr().out
    remember(tmp_path / "runs", data_dir="photos/Ängste")
    remember(tmp_path / "runs", run_name="first")
    remember(tmp_path / "runs", run_name="second")
    assert last_choice(tmp_path / "runs", "data_dir", None) == "photos/Ängste"
    assert last_choice(tmp_path / "runs", "run_name", None) == "second"
    assert "run_name is empty: 'second' is used, the last choice." in capsys.readouterr().out
    assert last_choice(tmp_path / "runs", "run_name", "first") == "first"
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("headless")
def test_a_program_that_runs_a_notebook_neither_keeps_nor_uses_a_choice(tmp_path):
    remember(tmp_path, run_name="mine")
    assert not list(tmp_path.iterdir())
    (tmp_path / "last_choices.json").write_text(json.dumps({"run_name": "x", "data_dir": "y"}))
    assert last_choice(tmp_path, "run_name", None) == "resnet101"
    assert last_choice(tmp_path, "data_dir", None) == "sample"


@pytest.mark.usefixtures("live")
def test_passwords_are_not_kept(tmp_path):
    remember(tmp_path, data_dir="https://example.org/a.zip", run_name="a")
    remember(tmp_path, data_dir="https://me:secret@example.org/b.zip", run_name="b")
    assert "secret" not in (tmp_path / "last_choices.json").read_text()
    assert last_choice(tmp_path, "data_dir", None) == "https://example.org/a.zip"
    assert last_choice(tmp_path, "run_name", None) == "b"


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("content", ["no JSON", "[1]", '{"data_dir": 3}', '{"other": "x"}'])
def test_a_file_that_is_damaged_holds_no_choice(tmp_path, content):
    (tmp_path / "last_choices.json").write_text(content)
    assert last_choice(tmp_path, "data_dir", None) == "sample"


@pytest.mark.usefixtures("live")
def test_a_folder_that_cannot_be_written_to_is_said(tmp_path, capsys):
    (tmp_path / "runs").write_text("a file")
    remember(tmp_path / "runs", run_name="a")
    assert "could not be remembered" in capsys.readouterr().out
