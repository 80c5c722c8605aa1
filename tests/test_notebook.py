"""Parameters of a notebook are checked and converted. (Through papermill: test_notebooks.py.)"""

import pytest
from IPython.core.interactiveshell import InteractiveShell

from resnet_ft import ParameterError, check_parameters

PARAMETERS = 'data_dir = "sample"  # where\nepochs = 10\ntrain_batchnorm = False'


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
    check_parameters()


def test_a_misspelt_parameter_names_the_right_ones(notebook):
    notebook("import os", PARAMETERS, '# Parameters\nnum_epoch = 3\ndata_dir = "x"\n')
    with pytest.raises(ParameterError, match=r"no parameter num_epoch\. .*: data_dir, epochs,"):
        check_parameters()


def test_what_papermill_and_yaml_leave_as_text_is_converted_and_said(notebook, capsys):
    given = '# Parameters\ndata_dir = 2024\nepochs = "null"\ntrain_batchnorm = "false"\n'
    namespace = notebook("import os", PARAMETERS, given)
    check_parameters()
    names = ("data_dir", "epochs", "train_batchnorm")
    assert [namespace[name] for name in names] == ["2024", None, False]
    said = "epochs 'null' as None, train_batchnorm 'false' as False, data_dir 2024 as '2024'"
    assert capsys.readouterr().out == f"Taken as it is meant: {said}.\n"
    check_parameters()  # the cell is run again
    assert capsys.readouterr().out == ""


def test_all_wrong_parameters_are_named_at_once(notebook):
    given = '# Parameters\nepochs = -1\ntrain_batchnorm = "maybe"\nnum_epoch = 3\n'
    namespace = notebook("import os", PARAMETERS, given)
    with pytest.raises(ParameterError) as raised:
        check_parameters()
    for name in ("no parameter num_epoch", "epochs=-1 should", "train_batchnorm='maybe' should"):
        assert name in str(raised.value)
    assert namespace["train_batchnorm"] == "maybe"


def test_parameters_that_are_edited_in_the_notebook_are_checked_too(notebook):
    namespace = notebook("%pip", PARAMETERS.replace("10", '"3"'), "this is no Python")
    check_parameters()
    assert namespace["epochs"] == 3
    notebook(PARAMETERS.replace("10", "2.5"))
    with pytest.raises(ParameterError, match=r"epochs=2\.5 should be None or a whole number"):
        check_parameters()


def test_names_that_a_notebook_uses_for_something_else_are_no_parameters(notebook):
    namespace = notebook("import os", PARAMETERS, "image = object()\nfolder, top_k = {}, []")
    check_parameters()
    assert namespace["top_k"] == []


def test_outside_of_ipython_there_is_nothing_to_check(monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    check_parameters()
