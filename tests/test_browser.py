"""What a person does in the notebooks, in Chromium: `make test-browser` runs these."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import browser
import numpy as np
import pandas as pd
import papermill
import pytest
from conftest import ROOT

from resnet_ft import Predictions, explore_map, make_sample_dataset, read_decisions

pytestmark = pytest.mark.browser
CLASSIC_PYTHON = ROOT / ".venv-classic" / "bin" / "python"
SMALL = {"image_size": 32, "batch_size": 16}
NETWORK = {"arch": "resnet18", "weights": None, "epochs": 10, "lr_finder_steps": 0}


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """The sample data set with flaws, so that there is something to review."""
    return make_sample_dataset(tmp_path_factory.mktemp("photos") / "flawed", flawed=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the server shows; each test has a folder of its own in it."""
    return tmp_path_factory.mktemp("server") / "work"


@pytest.fixture(scope="module")
def lab(folder):
    folder.mkdir()
    with browser.jupyter(browser.LAB, folder) as address:
        yield address


@pytest.fixture(scope="module")
def classic(tmp_path_factory):
    """The folder and the address of notebook 6.5 with ipywidgets 7.7, as Colab has them."""
    if not CLASSIC_PYTHON.exists():
        browser.missing(f"{CLASSIC_PYTHON} is not there: make test-browser installs it")
    folder = tmp_path_factory.mktemp("classic") / "work"
    folder.mkdir()
    with browser.jupyter(browser.CLASSIC, folder, CLASSIC_PYTHON) as address:
        yield folder, address


@pytest.fixture
def open_notebook(chromium, lab, folder, request):
    """Open a copy of a notebook in JupyterLab, with these parameters in its cell."""
    with opening(chromium, browser.LAB, lab, folder, request.node.name) as open_copy:
        yield open_copy


@contextmanager
def opening(chromium, front, address: str, folder: Path, name: str):
    """A function that opens copies of notebooks in a folder of their own."""
    opened = []

    def open_copy(notebook: str, **parameters):
        own = folder / name
        places = {"runs_dir": str(own / "runs"), "staging_dir": str(own / "data")}
        file = browser.copy_notebook(notebook, own / "notebooks", **places | parameters)
        opened.append(browser.OpenNotebook(chromium, front, address, file, folder))
        return opened[-1]

    yield open_copy
    for notebook in opened:
        notebook.page.close()


def assert_complete(notebook) -> None:
    assert not browser.errors(notebook)
    assert not browser.unfinished(notebook)


def the_error(notebook):
    """The one error, which is shown as a sentence, without the places in the code."""
    (error,) = browser.errors(notebook)
    shown = "\n".join(error.traceback)
    assert "Traceback" not in shown and "line" not in shown.lower().split()
    return error


def try_browsing(notebook, piece: str) -> None:
    """Another class, and its next page, show other images."""
    before = notebook.images(piece)
    assert before
    cell = notebook.cell(piece)
    cell.get_by_label("Class").select_option("fish")
    changed(notebook, piece, before)
    before = notebook.images(piece)
    if (forward := cell.get_by_role("button", name="Next")).count():
        forward.first.click()
    else:
        page = cell.get_by_label("Page")
        page.fill("2")
        page.press("Enter")
    changed(notebook, piece, before)


def try_augmentation(notebook, piece: str) -> None:
    before = notebook.images(piece)
    notebook.cell(piece).get_by_role("button", name="strong").click()
    changed(notebook, piece, before)


def try_review(notebook, piece: str, file: Path) -> None:
    """A decision is saved at once, and Undo takes it back."""
    cell, before = notebook.cell(piece), decisions(file)
    kinds = cell.get_by_role("combobox").first
    kinds.select_option(label=kinds.locator("option", has_text="blurred").inner_text())
    for name in ("Keep", "Exclude"):
        notebook.look()
        cell.get_by_role("button", name=name).first.click()
        browser.wait_until(lambda: decisions(file) != before, f"{name} is not in the file")
        (new,) = decisions(file) - before
        assert new[1:] == (name.lower(), "")
        notebook.look()
        cell.get_by_role("button", name="Undo").first.click()
        browser.wait_until(lambda: decisions(file) == before, f"{name} is not undone")


def decisions(file: Path) -> set[tuple]:
    return set(
        read_decisions(file)[["path", "decision", "value"]].itertuples(index=False, name=None)
    )


def try_upload(notebook, piece: str, photos: Path, folder: Path) -> None:
    """Two photographs are predicted, and a file that is none is named with the reason."""
    good = [shutil.copy(photos / "Val" / c / f"{c}_000.jpg", folder) for c in ("fish", "flower")]
    broken = folder / "broken.jpg"
    broken.write_bytes(b"no image")
    cell = notebook.cell(piece)
    before = len(notebook.images(piece))
    with notebook.page.expect_file_chooser() as chooser:
        cell.get_by_role("button", name="Drop images here").first.click()
    chooser.value.set_files([*good, broken])
    for name in ("fish_000.jpg", "flower_000.jpg", "broken.jpg"):
        cell.get_by_text(name).first.wait_for()
    browser.wait_until(lambda: len(notebook.images(piece)) >= before + 2, "nothing is predicted")
    assert "cannot be read" in cell.inner_text()


def try_feedback(notebook, piece: str, feedback: Path) -> None:
    """What is said to be right, or another class, is kept: of an upload, then of the camera."""
    cell = notebook.cell(piece)
    cell.get_by_role("button", name="Right").first.click()
    browser.wait_until(lambda: len([*feedback.glob("*/fish_000-*.jpg")]) == 1, "nothing is kept")
    cell.get_by_text("Kept as").first.wait_for()
    cell.get_by_role("button", name="Camera").click()
    cell.locator("video").wait_for()
    notebook.look()  # until the camera shows something
    cell.get_by_role("button", name="Take the photograph").click()
    cell.get_by_text("camera-").first.wait_for()
    assert cell.locator("video").count() == 0
    cell.get_by_role("combobox").first.select_option("flower")
    browser.wait_until(lambda: [*feedback.glob("flower/camera-*.jpg")], "no picture is kept")
    rows = read_decisions(feedback / "feedback.csv")
    assert len(rows) == 2 and rows["path"].iloc[1].startswith("flower/camera-")


def try_site(notebook, piece: str) -> None:
    """The page of `export_web`, in the notebook, answers for one of its examples."""
    page = notebook.cell(piece).locator("iframe").content_frame
    page.locator("#examples button").first.click()
    page.locator("article.card:not(.waiting) h2").first.wait_for()
    assert page.locator("article.card.failed").count() == 0


def changed(notebook, piece: str, before: list[str]) -> None:
    browser.wait_until(
        lambda: (now := notebook.images(piece)) and now != before, f"{piece} shows the same images"
    )


def test_photographs_are_staged_explored_and_reviewed(open_notebook, photos, folder, request):
    mount = open_notebook("01_mount_drive", data_dir=str(photos))
    mount.run_all()
    assert_complete(mount.finished())
    mount.photograph("01_mount_drive")

    explore = open_notebook("02_explore_data", data_dir=str(photos), **SMALL)
    explore.run_all()
    assert_complete(explore.finished())
    (file,) = (folder / request.node.name / "runs").glob("decisions-*.csv")
    try_browsing(explore, "browse_dataset(")
    try_augmentation(explore, "explore_augmentation(")
    try_review(explore, "review_dataset(", file)
    assert_complete(explore.finished())
    explore.photograph("02_explore_data")


def test_an_interrupted_training_resumes_and_its_model_is_used(
    open_notebook, photos, folder, request
):
    own = folder / request.node.name
    history = own / "runs" / "browser" / "history.csv"
    train = open_notebook("03_train", data_dir=str(photos), run_name="browser", **NETWORK, **SMALL)
    train.run_all()
    browser.wait_until(history.exists, "no epoch is complete", 120)
    train.interrupt()
    interrupted = train.finished()
    assert len(pd.read_csv(history)) < NETWORK["epochs"]
    assert the_error(interrupted).ename == "RunInterrupted"
    train.photograph("03_train_interrupted")
    train.run_all()
    trained = train.finished()
    assert_complete(trained)
    assert "resumes" in browser.text(trained)
    assert pd.read_csv(history)["epoch"].tolist() == list(range(1, 11))
    train.photograph("03_train")

    visualize = open_notebook("04_visualize", run_name="browser", num_images=6)
    visualize.run_all()
    assert_complete(visualize.finished())
    visualize.photograph("04_visualize")

    infer = open_notebook("05_infer", run_name="browser", make_web_page=True)
    infer.run_all()
    assert_complete(infer.finished())
    try_site(infer, "show_site(site)")
    try_upload(infer, "upload_and_predict(", photos, own)
    try_feedback(infer, "upload_and_predict(", own / "runs" / "browser" / "feedback")
    assert_complete(infer.finished())
    infer.photograph("05_infer")


def test_a_misspelt_parameter_is_named_with_the_one_that_is_meant(open_notebook):
    train = open_notebook("03_train", more="\nlearning_rat = 0.01  # how large a step is")
    train.run_all()
    error = the_error(train.finished())
    assert error.ename == "ParameterError"
    for name in ("learning_rat", "learning_rate"):
        assert name in error.evalue
    train.photograph("03_train_misspelt")


def test_a_folder_that_is_not_there_is_named(open_notebook):
    mount = open_notebook("01_mount_drive", data_dir="photos/no_such_folder")
    mount.run_all()
    error = the_error(mount.finished())
    assert "no_such_folder" in error.evalue
    mount.photograph("01_mount_drive_wrong_folder")


def test_the_widgets_work_in_classic_notebook_with_ipywidgets_7(chromium, classic, photos):
    folder, address = classic
    own = folder / "widgets"
    parameters = {"data_dir": str(photos), "run_name": "browser", **NETWORK, "epochs": 1, **SMALL}
    papermill.execute_notebook(
        ROOT / "notebooks" / "03_train.ipynb",
        None,
        {"runs_dir": str(own / "runs"), "staging_dir": str(own / "data"), **parameters},
        cwd=folder,
        progress_bar=False,
    )
    with opening(chromium, browser.CLASSIC, address, folder, "widgets") as open_notebook:
        explore = open_notebook("02_explore_data", data_dir=str(photos), **SMALL)
        explore.run_all()
        assert_complete(explore.finished())
        (file,) = (own / "runs").glob("decisions-*.csv")
        try_browsing(explore, "browse_dataset(")
        try_augmentation(explore, "explore_augmentation(")
        try_review(explore, "review_dataset(", file)
        explore.photograph("02_explore_data_classic")

        infer = open_notebook("05_infer", run_name="browser")
        infer.run_all()
        assert_complete(infer.finished())
        try_upload(infer, "upload_and_predict(", photos, own)
        try_feedback(infer, "upload_and_predict(", own / "runs" / "browser" / "feedback")
        infer.photograph("05_infer_classic")


def test_a_point_of_the_map_shows_its_image_to_a_pointer_and_to_the_keyboard(chromium, tmp_path):
    files = [str(file) for file in make_sample_dataset(tmp_path / "data").glob("Val/*/*_00*.jpg")]
    labels = [Path(file).parent.name for file in files]
    table = pd.DataFrame({"path": files, "label": labels, "predicted": "fish", "confidence": 0.6})
    features = np.random.default_rng(0).normal(size=(len(files), 3))
    found = Predictions(table, np.ones((len(files), 1)), ["fish"], None, features)
    html = explore_map({"val": found})._repr_html_()
    for width in browser.WIDTHS:
        page = chromium.new_page(viewport={"width": width, "height": 800})
        page.set_content(html)
        points = page.locator("svg g")
        assert points.count() == len(files)
        assert not points.get_by_text("val: ").filter(visible=True).count()
        last = points.last
        last.locator("circle").hover()
        assert last.locator("text").is_visible() and last.locator("image").is_visible()
        page.mouse.move(0, 0)
        assert not last.locator("text").is_visible()
        points.first.focus()
        page.keyboard.press("Tab")
        assert points.nth(1).locator("image").is_visible()
        assert not points.first.locator("image").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()
