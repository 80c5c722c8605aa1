"""Parameters that a notebook does not have are an error. (Through papermill: test_notebooks.py.)"""

import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from resnet_ft import ParameterError, check_parameters, show_table

PARAMETERS = 'data_dir = "sample"  # where\nnum_epochs = 10'


@pytest.fixture
def notebook(monkeypatch):
    """Runs cells one after the other, as a kernel does."""
    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)

    def run(*cells):
        for cell in cells:
            shell.run_cell(cell, store_history=True).raise_error()

    return run


def test_known_parameters_pass(notebook):
    notebook("import os", PARAMETERS, "# Parameters\nnum_epochs = 3\n")
    check_parameters()


def test_a_misspelt_parameter_names_the_right_ones(notebook):
    notebook("import os", PARAMETERS, '# Parameters\nnum_epoch = 3\ndata_dir = "x"\n')
    with pytest.raises(ParameterError, match=r"no parameter num_epoch\. .*: data_dir, num_epochs"):
        check_parameters()


def test_without_papermill_there_is_nothing_to_check(notebook):
    notebook("import os", PARAMETERS)
    check_parameters()


def test_outside_of_ipython_there_is_nothing_to_check(monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    check_parameters()


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


def test_a_long_table_says_how_long_it_is():
    html = show_table(pd.DataFrame({"path": range(5000)}))._repr_html_()
    assert html.count("<tr") == 1002 and "5000 rows" in html


def test_a_file_name_that_is_no_unicode_can_be_shown():
    table = show_table(pd.DataFrame({"path": ["caf\udce9.jpg"]}))
    assert "caf?.jpg" in table._repr_html_() and "caf?.jpg" in repr(table)
