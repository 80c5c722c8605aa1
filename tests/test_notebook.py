"""Parameters that a notebook does not have are an error. (Through papermill: test_notebooks.py.)"""

import pytest
from IPython.core.interactiveshell import InteractiveShell

from resnet_ft import ParameterError, check_parameters

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
