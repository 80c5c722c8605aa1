"""Parameters of a notebook are checked and converted. (Through papermill: test_notebooks.py.)"""

import json

import pandas as pd
import pytest
from conftest import ROOT
from IPython.core.interactiveshell import InteractiveShell

from resnet_ft import ParameterError, check_parameters, percent, show_table
from resnet_ft.notebook import shorten

PARAMETERS = 'data_dir = "sample"  # where\nepochs = 10\ntrain_batchnorm = False'


PARAMETER_CELL = "".join(
    next(
        cell["source"]
        for cell in json.loads((ROOT / "notebooks" / "03_train.ipynb").read_text())["cells"]
        if cell["metadata"].get("tags") == ["parameters"]
    )
)


@pytest.fixture
def notebook(monkeypatch):
    """Runs cells one after the other, as a kernel does."""
    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)

    def run(*cells):
        for cell in cells:
            ran = shell.run_cell(cell, store_history=True)
            assert ran.success or cell in ("this is no Python", "%pip")
        return shell.user_ns

    return run


def test_known_parameters_pass(notebook):
    notebook("import os", PARAMETERS, "# Parameters\nepochs = 3\n")
    check_parameters("03_train")


def test_a_misspelt_parameter_names_the_right_ones(notebook):
    notebook("import os", PARAMETERS, '# Parameters\nnum_epoch = 3\ndata_dir = "x"\n')
    expected = r"no parameter num_epoch \(did you mean epochs\?\)\. It has: data_dir, runs_dir"
    with pytest.raises(ParameterError, match=expected):
        check_parameters("03_train")


def test_a_parameter_that_a_person_misspells_in_the_cell_is_refused(notebook):
    notebook("import os", PARAMETER_CELL + "\nlearning_rat = 0.01")
    with pytest.raises(ParameterError, match=r"learning_rat \(did you mean learning_rate\?\)"):
        check_parameters("03_train")
    notebook(PARAMETER_CELL + "\nlearning_rate = 0.01")  # corrected, and the cell is run again
    check_parameters("03_train")


def test_in_a_used_kernel_the_cell_that_is_executed_again_counts(notebook):
    notebook("import os", PARAMETER_CELL)
    check_parameters("03_train")
    notebook("import torch", PARAMETER_CELL.replace("epochs =", "epoch =") + "\nseed: int = 3")
    with pytest.raises(ParameterError, match=r"no parameter epoch \(did you mean epochs\?\)"):
        check_parameters("03_train")
    notebook(PARAMETER_CELL)
    check_parameters("03_train")


@pytest.mark.parametrize("before", [True, False])
def test_a_near_miss_in_a_cell_of_ones_own_is_refused_until_it_is_corrected(notebook, before):
    cells = ["seed = 1\nepoch = 3", PARAMETERS] if before else [PARAMETERS, "epoch = 3"]
    notebook(*cells)
    if before:  # the cell of the parameters has set it since
        check_parameters("03_train")
        notebook("epoch = 3")
    with pytest.raises(ParameterError, match=r"epoch \(did you mean epochs\?\)"):
        check_parameters("03_train")
    notebook("epochs = 3")
    check_parameters("03_train")
    notebook("learning_rat = 0.01")
    with pytest.raises(ParameterError, match="learning_rate"):
        check_parameters("03_train")
    notebook("del learning_rat")
    check_parameters("03_train")


def test_variables_of_ones_own_in_other_cells_are_welcome(notebook):
    own = 'place = "a"\nseeds = [1, 2, 3]\nimage_sizes = (64, 128)\nfolder, image = "x", "y"'
    notebook("import os", own, PARAMETERS, own, "batch = len(seeds)\nrun = 3")
    check_parameters("03_train")


def test_a_name_of_another_notebook_is_no_parameter_of_this_one(notebook):
    namespace = notebook(PARAMETER_CELL + "\ntop_k = 5")
    with pytest.raises(ParameterError, match=r"no parameter top_k\."):
        check_parameters("03_train")
    notebook(PARAMETER_CELL, "folder = 3")
    check_parameters("03_train")
    assert namespace["folder"] == 3


def test_a_notebook_that_does_not_exist_is_refused():
    with pytest.raises(ParameterError, match="'03' should be one of 01_mount_drive, "):
        check_parameters("03")


def test_an_empty_field_of_a_form_is_none_without_a_word(notebook, capsys):
    namespace = notebook('data_dir = ""\nepochs = "5"\nrun_name = "a"')
    check_parameters("03_train")
    assert namespace["data_dir"] is None and namespace["epochs"] == 5
    assert capsys.readouterr().out == ""


def test_what_papermill_and_yaml_leave_as_text_is_converted_and_said(notebook, capsys):
    given = '# Parameters\ndata_dir = 2024\nepochs = "null"\ntrain_batchnorm = "false"\n'
    namespace = notebook("import os", PARAMETERS, given)
    check_parameters("03_train")
    names = ("data_dir", "epochs", "train_batchnorm")
    assert [namespace[name] for name in names] == ["2024", None, False]
    said = "data_dir 2024 as '2024', epochs 'null' as None, train_batchnorm 'false' as False"
    assert capsys.readouterr().out == f"Taken as it is meant: {said}.\n"
    check_parameters("03_train")  # the cell is run again
    assert capsys.readouterr().out == ""


def test_all_wrong_parameters_are_named_at_once(notebook):
    given = '# Parameters\nepochs = -1\ntrain_batchnorm = "maybe"\nnum_epoch = 3\n'
    namespace = notebook("import os", PARAMETERS, given)
    with pytest.raises(ParameterError) as raised:
        check_parameters("03_train")
    for name in ("no parameter num_epoch", "epochs=-1 should", "train_batchnorm='maybe' should"):
        assert name in str(raised.value)
    assert namespace["train_batchnorm"] == "maybe"


def test_parameters_that_are_edited_in_the_notebook_are_checked_too(notebook):
    namespace = notebook("%pip", PARAMETERS.replace("10", '"3"'), "this is no Python")
    check_parameters("03_train")
    assert namespace["epochs"] == 3
    notebook(PARAMETERS.replace("10", "2.5"))
    with pytest.raises(ParameterError, match=r"epochs=2\.5 should be None or a whole number"):
        check_parameters("03_train")


def test_names_that_a_notebook_uses_for_something_else_are_no_parameters(notebook):
    namespace = notebook("import os", PARAMETERS, "image = object()\nfolder, top_k = {}, []")
    check_parameters("03_train")
    assert namespace["top_k"] == []


def test_outside_of_ipython_there_is_nothing_to_check(monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    check_parameters("03_train")


def test_a_table_shows_names_as_they_are_written():
    evil = "<img src=x onerror=alert(1)>"
    index = pd.Index([evil, "$5 $6"], name="<script>n")
    table = pd.DataFrame({"path": [evil, "a" * 100], "<b>": [0.25, None]}, index)
    html = show_table(table, {"<b>": "{:.1%}"})._repr_html_()
    assert not [text for text in ("<img", "<script", "<b>", "nan") if text in html]
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") == 2 and "a" * 100 in html
    assert "25.0%" in html and "tex2jax_ignore mathjax_ignore" in html  # MathJax leaves it alone
    assert evil in str(show_table(table))  # where no HTML is shown
    assert evil not in str(show_table(table[["<b>"]], index=False))


def test_a_sentence_takes_the_place_of_an_empty_table():
    table = show_table(pd.DataFrame(columns=["path"]), empty="Every file < 1 MB could be read.")
    assert table._repr_html_() == "<p>Every file &lt; 1 MB could be read.</p>"
    assert repr(table) == "Every file < 1 MB could be read."
    assert "nothing" in repr(show_table(pd.DataFrame()))


def test_a_long_table_says_how_long_it_is():
    html = show_table(pd.DataFrame({"path": range(5000)}))._repr_html_()
    assert html.count("<tr") == 1002 and "5000 rows" in html


def test_a_file_name_that_is_no_unicode_can_be_shown():
    table = show_table(pd.DataFrame({"path": ["caf\udce9.jpg"]}))
    assert "caf?.jpg" in table._repr_html_() and "caf?.jpg" in repr(table)


def test_a_table_scrolls_and_shows_paths_from_the_data_folder_on(tmp_path):
    table = pd.DataFrame({"path": [str(tmp_path / "Val/a.jpg"), "/b.jpg"], "p": [0.9999, 0.5]})
    shown = show_table(table, {"p": percent}, relative_to=tmp_path)
    html = shown._repr_html_()
    assert html.startswith("<div style='overflow-x:auto'><table") and html.endswith("</div>")
    assert "<td>Val/a.jpg</td>" in html and "<td>/b.jpg</td>" in html
    assert "&gt;99.9%" in html or ">99.9%" in html
    assert str(tmp_path) not in str(shown)
    assert str(tmp_path) in table["path"][0]  # the table itself stays

    assert shorten("a.jpg", 5) == "a.jpg"
    assert shorten("0123456789.jpg", 9) == "0123….jpg"
