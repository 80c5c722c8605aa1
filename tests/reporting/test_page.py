"""The page about a run: what it says, that names are text in it, and how browsers show it."""

import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import browser
import numpy as np
import pandas as pd
import pytest
from conftest import write_image
from tiny import noise_loaders, train

from resnet_ft import DatasetError, Predictions, RunError, learning_curve, report
from resnet_ft.__main__ import main

EVIL = "<img src=x onerror=alert(1)>"
LONG = "a_class_with_a_name_that_" + "goes_on_and_" * 12 + "on"


def photographs(folder, classes):
    """A data set of a few small images; of each class one training image is also in Val."""
    for name in classes:
        for i in range(6):
            write_image(folder / "Train" / name / f"{i}.png", (40, 30), (40 * i, 90, 160))
            write_image(folder / "Val" / name / f"{i}{EVIL[:9]}.png", (60, 40), (200, 90, 20 * i))
        shutil.copy(folder / "Train" / name / "0.png", folder / "Val" / name / f"0{EVIL[:9]}.png")
    return folder


def evaluated_run(folder, data, classes):
    """A tiny run, and predictions of which the last image of each class is wrong."""
    train(noise_loaders(), folder)
    labels = np.repeat(np.arange(len(classes)), 6)
    predicted = labels.copy()
    predicted[5::6] = (predicted[5::6] + 1) % len(classes)
    table = pd.DataFrame(
        {
            "path": [
                str(data / "Val" / classes[label] / f"{i % 6}{EVIL[:9]}.png")
                for i, label in enumerate(labels)
            ],
            "label": [classes[label] for label in labels],
            "predicted": [classes[label] for label in predicted],
            "confidence": 0.8,
            "loss": 0.3,
        }
    )
    probabilities = np.full((len(labels), len(classes)), 0.2 / (len(classes) - 1), np.float32)
    probabilities[np.arange(len(labels)), predicted] = 0.8
    features = np.random.default_rng(0).normal(size=(len(labels), 5)).astype(np.float16)
    known = np.log(probabilities), features, "0123"
    Predictions(table, probabilities, list(classes), *known).save(folder / "evaluation.csv")
    scores = dict.fromkeys(("log_loss", "brier", "ece", "band"), 0.25)
    content = {"temperature": 1.5, "weights": "0123", "threshold": 0.61, "accuracy": 0.95}
    content |= {"before": scores, "after": dict.fromkeys(scores, 0.125)}
    (folder / "calibration.json").write_text(json.dumps(content))
    trained = table["path"].str.replace("/Val/", "/Train/").str.replace(f"{EVIL[:9]}.png", ".png")
    learned = table.assign(path=trained)
    Predictions(learned, probabilities, list(classes)).save(folder / "head_predictions.csv")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    classes = sorted([EVIL, LONG, '$x_1$ & "y"'])
    data = photographs(folder / "photos", classes)
    return evaluated_run(folder / "runs" / EVIL[:24], data, classes)


@pytest.fixture(scope="module")
def page(run):
    """With the audit of the images, and figures that notebook 4 left."""
    (run / "figures").mkdir(exist_ok=True)
    write_image(run / "figures" / "attention.png", (200, 120))
    return report(run, data_dir=run.parents[1] / "photos")


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def text_of(path):
    return re.sub(r"\s+", " ", Elements(path.read_text("utf-8")).text)


def test_the_page_says_how_good_the_model_is_and_what_to_do(page):
    text = text_of(page)
    assert "83.3% of 18 validation images are right" in text  # 15 of 18
    assert "lies between 60.8% and 94.2%" in text  # Wilson's interval
    assert "3 of 18 validation images are copies of training images" in text
    assert "leakage (error)" in text and "How to reproduce it" in text
    assert "Kept: after epoch" in text and "torchvision" in text


def test_the_page_is_one_file_that_asks_for_no_other(page):
    elements = Elements(page.read_text("utf-8")).found
    sources = [
        value
        for _, attributes in elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data")
    ]
    assert len(sources) > 20
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in elements}
    assert page.stat().st_size < 5e6


def test_every_picture_has_words_and_every_heading_its_place(page):
    elements = Elements(page.read_text("utf-8")).found
    assert all(attributes["alt"].strip() for tag, attributes in elements if tag == "img")
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_names_of_classes_files_and_runs_are_text(page):
    elements = Elements(page.read_text("utf-8"))
    assert not any(
        "onerror" in attributes or attributes.get("src") == "x" for _, attributes in elements.found
    )
    assert elements.text.count(EVIL) >= 5 and EVIL[:24] in elements.text
    assert '$x_1$ & "y"' in elements.text


def test_the_photographs_and_the_figures_of_notebook_4_are_shown(page):
    elements = Elements(page.read_text("utf-8")).found
    words = [attributes["alt"] for tag, attributes in elements if tag == "img"]
    assert sum(word.startswith("Photograph of class") for word in words) == 12 + 3
    assert any("spoke for the predicted class" in word for word in words)


def test_how_sure_it_is_stands_beside_how_right_before_and_after_calibration(page, run, tmp_path):
    text, words = text_of(page), Elements(page.read_text("utf-8")).found
    assert "80.0% sure of its answers" in text and "3.3 points under-confident" in text
    assert "temperature of 1.50" in text and "Log loss0.2500.125" in text
    assert "below 0.61 count as unsure; of the others, 95.0% or more should be right" in text
    pictures = [one["alt"] for tag, one in words if tag == "img"]
    assert any("Reliability diagram" in one for one in pictures)
    assert any("points in two dimensions" in one for one in pictures)
    other = shutil.copytree(run, tmp_path / "run")
    file = other / "calibration.json"
    file.write_text(file.read_text().replace("0123", "4567"))  # of other weights
    assert "temperature of" not in text_of(report(other))
    file.write_text("{")
    with pytest.raises(RunError, match=r"calibration\.json cannot be read"):
        report(other)


def test_without_the_photographs_their_names_are_listed_and_this_is_said(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "run")
    photos = run.parents[1] / "photos"
    hidden = photos.rename(photos.with_name("hidden"))
    try:
        text = text_of(report(moved))
        assert "The photographs are not where they were" in text
        assert f"5{EVIL[:9]}.png" in text and "were not audited" in text
        found = Elements((moved / "report.html").read_text("utf-8")).found
        assert not any("Photograph of" in one.get("alt", "") for _, one in found)
        report(moved, data_dir=hidden)  # where they are now
        found = Elements((moved / "report.html").read_text("utf-8")).found
        assert sum("Photograph of" in one.get("alt", "") for _, one in found) == 12 + 3
    finally:
        hidden.rename(photos)


def test_what_the_notebook_knows_already_is_taken_from_it(run, tmp_path):
    features = np.repeat(np.eye(2), 8, axis=0)
    import torch

    pair = torch.tensor(features), torch.arange(2).repeat_interleave(8)
    curve = learning_curve({"train": pair, "val": pair}, draws=2)
    table = pd.DataFrame(
        {
            "path": None,
            "label": list("aabb"),
            "predicted": list("aabb"),
            "confidence": 0.9,
            "loss": 0.1,
        }
    )
    given = Predictions(table, np.zeros((4, 2)), ["a", "b"])
    text = text_of(
        report(
            shutil.copytree(run, tmp_path / "run"),
            predictions={"val": given, "test": given},
            curve=curve,
        )
    )
    assert "100.0% of 4 validation images are right" in text and "Test, 4 images" in text
    assert "All validation images are predicted right." in text
    assert curve.sentence in text


def test_the_shell_writes_the_page_or_says_what_is_missing(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    main(["report", str(copy)])
    assert Path(capsys.readouterr().out.strip()) == copy / "report.html"
    (copy / "evaluation.csv").unlink()
    with pytest.raises(DatasetError, match=r"evaluation\.csv.*notebook 04"):
        report(copy)
    with pytest.raises(RunError, match="not a trained run"):
        report(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", browser.WIDTHS)
def test_browsers_show_the_page_without_errors_and_readers_can_read_it(page, width, scheme):
    import axe_playwright_python

    axe = Path(axe_playwright_python.__file__).with_name("axe.min.js")
    browser.PICTURES.mkdir(parents=True, exist_ok=True)
    complaints: list[str] = []
    with browser.chromium() as chromium:
        shown = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        shown.on("console", lambda message: complaints.append(message.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on("dialog", lambda dialog: complaints.append(dialog.message))
        shown.on(
            "request",
            lambda request: complaints.extend(
                [] if request.url.startswith(("file:", "data:")) else [request.url]
            ),
        )
        shown.goto(page.as_uri())
        shown.screenshot(path=browser.PICTURES / f"report_{width}_{scheme}.png", full_page=True)
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        loaded = shown.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert loaded
        assert not complaints
        shown.add_script_tag(path=axe)
        found = shown.evaluate("axe.run()")
        serious = [
            (one["id"], one["nodes"][0]["html"])
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert not serious and len(found["passes"]) > 20


@pytest.mark.slow
def test_the_page_prints_as_a_pdf_of_few_pages(page, tmp_path):
    with browser.chromium() as chromium:
        shown = chromium.new_page()
        shown.goto(page.as_uri())
        pdf = shown.pdf(path=browser.PICTURES / "report.pdf", format="A4")
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
