"""The model card: what it says, what it leaves out, and that names are text in it."""

import shutil

import pytest
import yaml
from exported import COLOURS, colours_run

from resnet_ft import accuracy_interval, load_checkpoint, load_predictions, model_card

hub = pytest.importorskip("huggingface_hub")

EVIL = "--- *x* |`y`| <img src=x> [a](http:··b) $1$ {{ 1 }}: #"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return colours_run(tmp_path_factory.mktemp("card"), sorted([EVIL, "green", "red"]))


@pytest.fixture(scope="module")
def card(run):
    return model_card(run)


def test_its_metadata_are_those_of_hugging_face(run, card):
    found = hub.ModelCard.load(card).data
    assert (found.library_name, found.pipeline_tag) == ("resnet_ft", "image-classification")
    assert found.tags == ["resnet18", "fine-tuned"] and found.license is None
    (result,) = found.eval_results
    assert (result.dataset_name, result.dataset_split) == ("photos", "validation")
    accuracy = load_predictions(run.folder / "evaluation.csv").accuracy
    assert (result.metric_type, result.metric_value) == (
        "accuracy",
        pytest.approx(accuracy, abs=1e-4),
    )


def test_it_says_how_good_the_model_is_and_how_sure(run, card):
    text, found = card.read_text("utf-8"), load_predictions(run.folder / "evaluation.csv")
    low, high = accuracy_interval(found)
    assert f"| validation | 24 | {found.accuracy:.1%} | {low:.1%} to {high:.1%} |" in text
    assert "The validation images also chose the best epoch" in text
    calibration = load_checkpoint(run.best).calibration
    assert f"a confidence below {calibration['threshold']:.1%} are marked as unsure" in text
    assert 'predictor = Predictor.load("best.pt")' in text and "32 x 32 pixels" in text


def test_names_are_text_in_markdown_and_in_yaml(run, card):
    _, metadata, text = card.read_text("utf-8").split("---\n", 2)
    assert yaml.safe_load(metadata)["library_name"] == "resnet_ft"
    rows = [line for line in text.splitlines() if "img" in line]
    assert len(rows) >= 2  # the list of classes, and the table's row
    for line in rows:
        plain = line.replace("\\", "")
        assert EVIL in plain
        for mark in "*`<[$#{":
            assert line.count(mark) == line.count(f"\\{mark}")
    assert rows[1].replace("\\|", "").count("|") == 6


def test_what_is_not_known_is_left_out(run, tmp_path):
    """Of a checkpoint alone, and of scores and a calibration that are of other weights."""
    shutil.copy(run.best, tmp_path / "best.pt")
    card = model_card(tmp_path / "best.pt")
    text = card.read_text("utf-8")
    assert "How sure it is" in text and "How good it is" not in text and "training and" not in text
    assert hub.ModelCard.load(card).data.eval_results is None
    content = load_checkpoint(run.best)
    content.state_dict["fc.bias"][0] += 1
    content.write(tmp_path / "best.pt")
    shutil.copy(run.folder / "evaluation.csv", tmp_path)
    shutil.copy(run.folder / "evaluation.safetensors", tmp_path)
    text = model_card(tmp_path / "best.pt").read_text("utf-8")
    assert "How sure it is" not in text and "How good it is" not in text
    assert str(len(COLOURS)) in text
