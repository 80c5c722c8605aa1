"""The notebooks: their form, and the whole journey through papermill in fresh kernels."""

import ast
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import timm
import torch
from conftest import ROOT, shared_data, write_image
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.manager import start_new_kernel

from resnet_ft import build_model, load_checkpoint, load_predictions
from resnet_ft.training.options import NOTEBOOKS, _assigned, _misspelt, checked

NAMES = ["01_mount_drive", "02_explore_data", "03_train", "04_visualize", "05_infer"]


@pytest.fixture(params=NAMES)
def notebook(request):
    return nbformat.read(ROOT / "notebooks" / f"{request.param}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parsed(cell):
    return ast.parse(TransformerManager().transform_cell(cell.source))


def test_there_are_five_notebooks():
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == NAMES


def test_notebooks_are_valid_and_hold_no_outputs(notebook):
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None


def test_the_opening_is_the_same_everywhere(notebook):
    title, setup, *rest = notebook.cells
    assert title.source.startswith("# ") and "colab-badge.svg" in title.source
    first = nbformat.read(ROOT / "notebooks" / "01_mount_drive.ipynb", as_version=4)
    assert setup.source == code_cells(first)[0].source
    imports, parameters, derived = code_cells(notebook)[1:4]
    assert all(isinstance(node, ast.Import | ast.ImportFrom) for node in parsed(imports).body)
    assert parameters.metadata.tags == ["parameters"]
    assert derived.source.startswith("check_parameters(")
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in rest) == 1


PARAMETERS = runpy.run_path(str(ROOT / "scripts" / "parameter_table.py"))["parameters"]
FIELD = re.compile(r"@param (?P<choices>\[.*?\])? ?(?P<options>\{.*\})?")


def test_parameters_are_literals_with_a_meaning_each(notebook):
    cell = next(cell for cell in code_cells(notebook) if cell.metadata.get("tags"))
    own = notebook_name(notebook)
    rows = PARAMETERS(ROOT / "notebooks" / f"{own}.ipynb")
    for _, value, meaning in rows:
        ast.literal_eval(value)
        assert meaning and "@" not in meaning
    names = tuple(name for name, _, _ in rows)
    assert names == NOTEBOOKS[own]
    assert names == tuple(node.targets[0].id for node in ast.parse(cell.source).body)
    assert f'check_parameters("{own}")' in code_cells(notebook)[3].source


def notebook_name(notebook):
    number = notebook.cells[0]["id"].split("-")[0]
    return next(name for name in NAMES if name.startswith(number))


def test_the_parameters_that_matter_are_a_form_in_colab(notebook):
    """Each field is parsed as Colab does it, and all that it can give passes the schema."""
    cell = next(cell for cell in code_cells(notebook) if cell.metadata.get("tags"))
    lines = cell.source.splitlines()
    assert lines[0] == "# @title Your parameters"
    fields = [row for row, line in enumerate(lines) if "# @param" in line]
    assert 4 <= len(fields) <= 8
    rule = lines.index("# @markdown ---")
    assert fields[-1] < rule and "# Advanced" in lines[rule + 2]  # the rest is below
    for row in fields:
        assert lines[row - 1].startswith("# @markdown ")
        statement, _, comment = lines[row].partition("  # ")
        name, value = statement.split(" = ", 1)
        default, field = ast.literal_eval(value), FIELD.fullmatch(comment)
        choices = json.loads(field["choices"] or "[]")
        options = dict(re.findall(r'([\w-]+): ?"?(\w+)"?', field["options"] or ""))
        if choices:
            assert default in choices and set(options) <= {"allow-input"}
        else:
            kind = {"string": str, "integer": int, "number": float, "boolean": bool}
            assert type(default) is kind[options["type"]]
        for one in [*choices, default]:
            assert checked({name: one}, say=pytest.fail, from_form=True) == {
                name: None if one == "" else one
            }


def test_notebooks_define_nothing(notebook):
    for cell in code_cells(notebook):
        for node in ast.walk(parsed(cell)):
            assert not isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
            )


def test_cells_are_short_and_each_is_led_in_by_prose(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds.count("markdown") >= kinds.count("code")
    for cell in code_cells(notebook)[3:]:
        assert len(cell.source.splitlines()) <= 10
    for before, after in pairwise(kinds[1:]):
        assert (before, after) != ("code", "code")


def test_the_end_says_what_one_has_and_where_to_go(notebook):
    last = notebook.cells[-1]
    assert last.cell_type == "markdown" and last.source.startswith("## What you have now")
    assert ".ipynb" in last.source


def test_links_between_notebooks_lead_somewhere(notebook):
    links = [link for cell in notebook.cells for link in re.findall(r"\]\(([^):]+)\)", cell.source)]
    assert links
    for link in links:
        assert (ROOT / "notebooks" / link).is_file(), link


def test_tables_are_shown_with_their_names_escaped(notebook):
    assert not [cell.source for cell in code_cells(notebook) if ".style" in cell.source]


def test_ruff_is_content():
    for command in (["check"], ["format", "--check"]):
        run = subprocess.run(
            [sys.executable, "-m", "ruff", *command, str(ROOT)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout


def test_every_notebook_stages_the_data_itself_and_shares_only_the_run():
    for name in NAMES:
        text = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
        assert "mount_drive(mount_point)" in text and "relative_to=my_drive" in text


def test_no_notebook_assigns_what_looks_like_a_misspelt_parameter(notebook):
    cells = [TransformerManager().transform_cell(cell.source) for cell in code_cells(notebook)]
    assigned = [_assigned(cell) for cell in cells]
    own = NOTEBOOKS[notebook_name(notebook)]
    assert {*own} <= {name for names in assigned for name in names}
    for value in (1, "a", None, True):  # as if every variable had a value for some parameter
        namespace = {name: value for names in assigned for name in names}
        assert _misspelt(assigned, own, namespace) == {}


# What follows runs the notebooks.


def execute(name, output, **parameters):
    """Run a notebook in a fresh kernel, as the command line does, and return it executed."""
    executed = papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb",
        output / f"{name}.ipynb",
        parameters,
        cwd=output,
        progress_bar=False,
    )
    return nbformat.from_dict(executed)


def figures(notebook):
    return sum(
        "image/png" in output.get("data", {})
        for cell in code_cells(notebook)
        for output in cell.outputs
    )


def outputs(notebook):
    """What the cells of a notebook show, as one text."""
    return json.dumps([cell.outputs for cell in code_cells(notebook)])


SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != "03_train"]


@pytest.mark.parametrize("name", ["03_train", *SLOWLY])
def test_a_misspelt_parameter_is_an_error(name, tmp_path):
    with pytest.raises(
        papermill.PapermillExecutionError, match="no parameter stagingdir"
    ) as raised:
        execute(name, tmp_path, stagingdir="x")
    assert raised.value.ename == "ParameterError"


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        pytest.param(
            *("01_mount_drive", {"max_side": "64px"}, "max_side='64px' should be None or a whole"),
            marks=pytest.mark.slow,
        ),
        (
            "03_train",
            {"seed": None, "label_smoothing": 10},
            "label_smoothing=10 should be a number",
        ),
    ],
)
def test_a_parameter_of_another_type_ends_in_the_first_cell(name, given, message, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=message) as raised:
        execute(name, tmp_path, **given)
    assert raised.value.ename == "ParameterError" and raised.value.source.startswith("check_param")
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.ipynb"]


@pytest.fixture
def staged(tmp_path):
    """Where a test stages data and keeps runs: all of it below its own folder."""
    return {"runs_dir": str(tmp_path / "runs"), "staging_dir": str(tmp_path / "data")}


@pytest.mark.slow
def test_the_journey_on_real_photographs(tmp_path, staged):
    photos = tmp_path / "photos"
    shutil.copytree(shared_data("hymenoptera"), photos)
    (photos / "Val" / "ants" / "broken.jpg").write_bytes(b"no image")
    shutil.copytree(photos / "Val" / "bees", photos / "Test" / "no labels")
    shutil.copy(photos / "Val" / "ants" / "broken.jpg", photos / "Test" / "no labels")
    taught = min((photos / "Train" / "ants").glob("*.jpg"))
    shutil.copy(taught, photos / "Val" / "ants" / "leak.jpg")
    common = {**staged, "run_name": "ants"}
    small = {"image_size": 64, "batch_size": 32}
    staging = {"data_dir": str(photos), **staged}

    mounted = execute(
        "01_mount_drive", tmp_path, **staging, pack_as=str(tmp_path / "packed.tar"), max_side=400
    )
    assert (tmp_path / "packed.tar").is_file()
    assert figures(mounted) == 2
    assert "Test has no folder of a class of Train" in outputs(mounted)
    explored = execute("02_explore_data", tmp_path, **staging, **small)
    assert figures(explored) >= 5
    assert "Test has no folder of a class of Train" in outputs(explored)
    (file,) = (tmp_path / "runs").glob("decisions-photos-*.csv")
    decisions = pd.read_csv(file)
    assert decisions["path"].tolist() == [f"Train/ants/{taught.name}"]
    trained = execute(
        "03_train",
        tmp_path,
        **common,
        **small,
        data_dir=str(photos),
        arch="resnet18",
        weights=str(some_weights(tmp_path / "weights.pth")),
        epochs=2,
        lr_finder_steps=20,
    )
    assert figures(trained) >= 2  # the learning-rate finder, the curves, labels to look at
    run = tmp_path / "runs" / "ants"
    checkpoint = load_checkpoint(run / "best.pt")
    assert checkpoint.arch == "resnet18" and checkpoint.classes == ["ants", "bees"]
    history = pd.read_csv(run / "history.csv")
    assert history["epoch"].tolist() == [0, 1, 2]  # the head first
    assert len(load_predictions(run / "head_predictions.csv").table) == 244
    assert "30 epochs through the network" in outputs(trained)
    config = json.loads((run / "config.json").read_text())
    assert config["data_source"] == str(photos)
    assert config["fine_tune"]["epochs"] == 2
    assert config["training"]["images"] == {"train": 244, "val": 154}  # of 245, without the leak

    visualized = execute("04_visualize", tmp_path, **common)
    assert figures(visualized) >= 10
    assert len(pd.read_csv(run / "evaluation.csv")) == 154
    inferred = execute("05_infer", tmp_path, **common)
    assert figures(inferred) == 1
    for notebook in (explored, trained, visualized, inferred):
        assert "broken.jpg" in outputs(notebook)
    predictions = pd.read_csv(run / "predictions.csv")
    assert len(predictions) == 83 + 1  # those of Test, which have no labels
    assert predictions["error"].notna().sum() == 1
    names = {path.stem for path in (run / "figures").glob("*.png")}
    assert names == {
        *("history", "predictions", "confusion_matrix", "confused_pairs", "mistakes", "attention"),
        *("neighbours", "map", "calibration", "coverage", "learning_curve"),
    }
    assert "points (" in outputs(visualized)  # what twice as many photographs would bring
    assert "<h2" in (run / "report.html").read_text()

    with pytest.raises(papermill.PapermillExecutionError, match="began with other parameters"):
        execute("03_train", tmp_path, **common, data_dir=str(photos))


@pytest.mark.slow
def test_names_that_are_html_or_formulas_are_text_in_all_notebooks(tmp_path, staged):
    evil = "<img src=x onerror=alert(1)>"
    for name in (evil, r"$\frac$", "$5 $6", "_cat"):
        for i in range(6):
            write_image(tmp_path / "photos" / ("Train", "Val")[i % 2] / name / f"{i} {evil}.png")
    (tmp_path / "photos" / "Val" / "_cat" / f"broken {evil}.jpg").write_bytes(b"no image")
    source, small = {"data_dir": str(tmp_path / "photos")}, {"image_size": 32, "batch_size": 4}
    training = {"arch": "resnet18", "weights": None, "epochs": 1, "lr_finder_steps": 0}
    given = [source, source | small, source | small | training, {}, {}]
    for name, parameters in zip(NAMES, given, strict=True):
        run = {} if name < "03" else {"run_name": "names"}
        executed = execute(name, tmp_path, **staged, **parameters, **run)
        shown = [output.get("data", {}) for cell in code_cells(executed) for output in cell.outputs]
        html = "".join(data.get("text/html", "") for data in shown)
        assert "<img src=x" not in html
        assert ("&lt;img src=x" in html) == (name != "03_train")


@pytest.mark.slow
def test_a_network_with_a_normalisation_of_its_own_goes_through_the_notebooks(
    tmp_path, staged, photos
):
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    network = {"arch": "timm/tf_efficientnet_lite0", "weights": str(tmp_path / "weights.pth")}
    small = {"image_size": 32, "batch_size": 4, "epochs": 1, "lr_finder_steps": 0}
    run = {**staged, "run_name": "own"}
    execute("03_train", tmp_path, **run, data_dir=str(photos), **network, **small)
    checkpoint = load_checkpoint(tmp_path / "runs" / "own" / "best.pt")
    assert checkpoint.preprocessing["mean"] == [0.5, 0.5, 0.5]
    execute("04_visualize", tmp_path, **run)
    execute("05_infer", tmp_path, **run)


def some_weights(path):
    """A file that stands for pretrained weights, which there is no network for."""
    torch.save(build_model("resnet18", 1000, weights=None).state_dict(), path)
    return path


FINE_TUNE = """
import sys
import torch
from resnet_ft import build_model, fine_tune, make_dataloaders, train_transform

photos, weights, run_dir = sys.argv[1:]
transform = train_transform(32, strength="medium")
dataloaders = make_dataloaders(photos, image_size=32, batch_size=5, train=transform)
torch.manual_seed(0)
model = build_model("resnet18", 2, weights=weights)
fine_tune(model, dataloaders, epochs=2, mix="mixup", balance="loss", patience=2, run_dir=run_dir)
"""


@pytest.mark.slow
def test_notebook_3_and_fine_tune_give_the_same_model_bit_for_bit(tmp_path, staged, photos):
    weights = some_weights(tmp_path / "weights.pth")
    script = [sys.executable, "-c", FINE_TUNE, photos, weights, tmp_path / "one-call"]
    subprocess.run([str(word) for word in script], check=True, cwd=tmp_path)
    options = {"epochs": 2, "mix": "mixup", "balance": "loss", "patience": 2}
    execute(
        *("03_train", tmp_path),
        **{**staged, **options, "data_dir": str(photos), "run_name": "parts", "arch": "resnet18"},
        **{"weights": str(weights), "image_size": 32, "batch_size": 5, "lr_finder_steps": 20},
    )
    one_call, parts = tmp_path / "one-call", tmp_path / "runs" / "parts"
    expected, found = (load_checkpoint(run / "best.pt") for run in (one_call, parts))
    assert expected.scores["epoch"] == found.scores["epoch"]
    for name, tensor in expected.state_dict.items():
        assert torch.equal(found.state_dict[name], tensor), name
    histories = [pd.read_csv(run / "history.csv") for run in (one_call, parts)]
    pd.testing.assert_frame_equal(
        *(history.drop(columns="seconds") for history in histories), check_exact=True
    )
    configs = [json.loads((run / "config.json").read_text()) for run in (one_call, parts)]
    for entry in ("training", "fine_tune"):
        assert configs[0][entry] == configs[1][entry]


@pytest.mark.slow
def test_notebook_3_trains_in_two_processes_and_then_finds_the_run_finished(
    tmp_path, staged, photos
):
    trained = execute(
        *("03_train", tmp_path),
        **{**staged, "data_dir": str(photos), "run_name": "two", "arch": "resnet18", "epochs": 1},
        **{"weights": str(some_weights(tmp_path / "weights.pth")), "image_size": 32},
        **{"batch_size": 4, "lr_finder_steps": 0, "num_processes": 2},
    )
    assert "is finished: 1 of 1 epochs are done" in outputs(trained)
    history = pd.read_csv(tmp_path / "runs" / "two" / "history.csv")
    assert history["epoch"].tolist() == [0, 1]
    assert outputs(trained).count("(cross-validated)") == 1  # by the processes alone


def test_in_a_live_notebook_an_empty_field_is_what_an_earlier_one_chose(tmp_path, photos):
    """As JupyterLab and Colab run the first cells: the kernel may ask its user for input."""
    manager, client = start_new_kernel(cwd=str(tmp_path))
    folders = f"runs_dir, staging_dir = {str(tmp_path / 'runs')!r}, {str(tmp_path / 'data')!r}"

    def run(name, number, typed):
        """The cells up to the one of this number, with what a person typed after the parameters."""
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        shown = []
        for cell in code_cells(notebook)[1:number]:
            added = f"\n{folders}\n{typed}" if cell.metadata.get("tags") else ""
            for source in (cell.source, added):
                client.execute_interactive(source, allow_stdin=True, output_hook=shown.append)
        return [one["content"] for one in shown if one["msg_type"] in ("stream", "error")]

    try:
        assert "ename" not in str(run("01_mount_drive", 6, f"data_dir = {str(photos)!r}"))
        used = f"data_dir is empty: {str(photos)!r} is used, the last choice."
        assert used in "".join(one["text"] for one in run("02_explore_data", 4, ""))
        *_, error = run("02_explore_data", 4, "image_sise = 64")
        assert error["ename"] == "ParameterError" and len(error["traceback"]) == 2
        assert "no parameter image_sise (did you mean image_size?)" in error["evalue"]
        *_, error = run("04_visualize", 4, 'data_dir = "photo"')
        assert "resnet101 is not a trained run" in error["evalue"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


FAKE_DRIVE = """
import os, pathlib

def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    if os.environ["FAKE_DRIVE"] == "fails":
        raise ValueError("mount failed: timeout")
    os.makedirs(mountpoint, exist_ok=True)
    my_drive = pathlib.Path(mountpoint, "MyDrive")
    if not my_drive.exists():
        my_drive.symlink_to(os.environ["FAKE_DRIVE"])
    print("Mounted at", mountpoint)
"""


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A google.colab, imported in every new kernel, whose Drive is a folder of this test."""
    package = tmp_path / "site" / "google" / "colab"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "drive.py").write_text(FAKE_DRIVE)
    (tmp_path / "site" / "sitecustomize.py").write_text("import google.colab")
    drive = tmp_path / "drive"
    drive.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("FAKE_DRIVE", str(drive))
    return drive


@pytest.mark.slow
def test_the_journey_in_colab_with_everything_on_drive(tmp_path, colab, photos):
    """Each notebook on a new machine: nothing but Drive is kept between them."""
    shutil.move(photos, colab / "my photos")
    small = {"image_size": 32, "batch_size": 4}

    def run(name, **parameters):
        machine = tmp_path / f"machine-{name}"
        machine.mkdir()
        parameters["mount_point"] = str(machine / "drive")
        parameters["staging_dir"] = str(machine / "data")
        executed = execute(name, machine, **parameters)
        assert any((machine / "data").iterdir())
        return json.dumps(executed)

    source = {"data_dir": "my photos"}
    assert "Mounted at" in run("01_mount_drive", **source)
    run("02_explore_data", **source, **small)
    training = {"arch": "resnet18", "weights": None, "epochs": 1, "lr_finder_steps": 0}
    run("03_train", **source, **small, **training, run_name="one")
    assert (colab / "runs" / "one" / "best.pt").is_file()
    run("04_visualize", run_name="one")
    run("05_infer", run_name="one")
    assert len(pd.read_csv(colab / "runs" / "one" / "predictions.csv")) == 6


@pytest.mark.slow
def test_a_run_whose_kernel_is_killed_ends_as_an_undisturbed_one(tmp_path):
    parameters = {"arch": "resnet18", "weights": None, "image_size": 32, "epochs": 3}
    parameters |= {"lr_finder_steps": 0, "save_minutes": 1e-3, "runs_dir": str(tmp_path)}
    train = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "03_train.ipynb")]
    given = [word for name, value in parameters.items() for word in ("-p", name, str(value))]

    def run(name):
        output = str(tmp_path / f"{name}.ipynb")
        return subprocess.Popen([*train, output, *given, "-p", "run_name", name], cwd=ROOT)

    assert run("whole").wait() == 0
    process, history = run("killed"), tmp_path / "killed" / "history.csv"
    while not history.exists():  # the first epoch is complete
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    assert process.wait() != 0
    assert len(pd.read_csv(history)) < 3
    assert run("killed").wait() == 0
    weights = [
        load_checkpoint(tmp_path / name / "best.pt").state_dict for name in ("whole", "killed")
    ]
    assert all(map(torch.equal, *(one.values() for one in weights)))
    rows = [pd.read_csv(tmp_path / name / "history.csv") for name in ("whole", "killed")]
    pd.testing.assert_frame_equal(*(one.drop(columns="seconds") for one in rows))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_drive_that_cannot_be_mounted_says_what_to_do(tmp_path, colab, monkeypatch, name):
    monkeypatch.setenv("FAKE_DRIVE", "fails")
    with pytest.raises(papermill.PapermillExecutionError, match="press Connect") as raised:
        execute(name, tmp_path, mount_point=str(tmp_path / "drive"))
    assert raised.value.ename == "DriveError"
