"""What `make demo` leaves behind, where it has been run: CI runs it before the slow tests."""

import re
import runpy

import nbformat
import pytest
from conftest import ROOT

from resnet_ft import load_checkpoint

DEMO = ROOT / "runs" / "demo"


@pytest.mark.slow
def test_the_demo_leaves_a_page_that_links_all_it_made():
    if not (DEMO / "index.html").is_file():
        pytest.skip("run make demo first")
    page = (DEMO / "index.html").read_text()
    targets = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert all((DEMO / target).is_file() for target in targets)
    assert sum(target.endswith(".ipynb") for target in targets) == 5
    assert sum(target.endswith(".html") for target in targets) == 5
    assert sum(target.endswith(".png") for target in targets) == 5
    assert {"best.pt", "config.json", "history.csv", "predictions.csv"} < set(targets)
    accuracy = load_checkpoint(DEMO / "best.pt").scores["val_accuracy"]
    assert f"validation accuracy {accuracy:.1%}" in page


@pytest.mark.slow
def test_the_demo_trains_a_resnet101_that_has_learned():
    if not (DEMO / "best.pt").is_file():
        pytest.skip("run make demo first")
    checkpoint = load_checkpoint(DEMO / "best.pt")
    assert checkpoint.arch == "resnet101"
    assert checkpoint.scores["val_accuracy"] > 0.75  # guessing among four classes gives 0.25
    for path in (DEMO / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                assert output.output_type != "error"


def test_an_earlier_demo_is_moved_aside_with_all_that_is_in_it(tmp_path, capsys):
    keep_earlier_demo = runpy.run_path(str(ROOT / "scripts" / "demo.py"))["keep_earlier_demo"]
    demo = keep_earlier_demo.__globals__["DEMO"] = tmp_path / "runs" / "demo"
    keep_earlier_demo()  # there is none
    demo.mkdir(parents=True)
    (demo / "best.pt").write_text("mine")
    keep_earlier_demo()
    (earlier,) = (tmp_path / "runs").iterdir()
    assert earlier.name.startswith("demo-before-") and str(earlier) in capsys.readouterr().out
    assert (earlier / "best.pt").read_text() == "mine"


def test_the_page_of_the_demo_holds_names_as_text(tmp_path):
    index_page = runpy.run_path(str(ROOT / "scripts" / "demo.py"))["index_page"]
    index_page.__globals__["DEMO"] = tmp_path
    index_page.__globals__["result"] = lambda: "resnet<b>"
    (tmp_path / 'a"#<i>.csv').touch()
    page = index_page()
    assert 'href="a%22%23%3Ci%3E.csv"' in page and "&lt;i&gt;" in page
    assert "<i>" not in page and "<b>" not in page
