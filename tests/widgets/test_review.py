"""The review of an audit's findings, driven as a browser would."""

import shutil
from dataclasses import replace

import ipywidgets
import pandas as pd
import pytest

from resnet_ft import (
    audit_dataset,
    make_dataloaders,
    read_decisions,
    review_dataset,
    review_label_errors,
)


@pytest.fixture
def flawed(photos):
    shutil.copy(photos / "Train/red/0.png", photos / "Val/red/copy.png")
    (photos / "Train/blue/broken.jpg").write_bytes(b"no image")
    return photos


def controls(widget: ipywidgets.Widget) -> dict[str, ipywidgets.Widget]:
    """Every control below a widget, by what is written on it; the last of equal ones."""
    found = {}
    for child in getattr(widget, "children", ()):
        found |= controls(child)
    name = getattr(widget, "description", "")
    return {name: widget, **found} if name else found


def review(flawed, tmp_path):
    audit = audit_dataset(flawed, image_size=32, cache_dir=tmp_path / "cache")
    widget = review_dataset(audit, tmp_path / "decisions.csv")
    bar, heading, cards, status, _ = widget.children
    bar.children[0].value = "leakage"
    return bar, heading, cards, status


def decisions(tmp_path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for row in read_decisions(tmp_path / "decisions.csv").itertuples():
        found.setdefault(row.path, {})[row.decision] = row.value
    return found


def test_copies_are_shown_side_by_side_and_decided_one_by_one(flawed, tmp_path):
    _, heading, cards, status = review(flawed, tmp_path)
    assert "1 of 1 · leakage" in heading.value
    copy, original = cards.children
    assert "Val/red/copy.png" in copy.children[1].value
    assert "0 of 1 decided" in status.value
    controls(original)["Exclude"].click()
    assert decisions(tmp_path) == {"Train/red/0.png": {"exclude": ""}}
    assert "decision: <b>exclude" in cards.children[1].children[1].value
    assert "1 of 1 decided" in status.value
    loaders = make_dataloaders(
        flawed, image_size=32, num_workers=0, decisions=tmp_path / "decisions.csv"
    )
    assert len(loaders["train"].dataset) == 16


def test_an_image_gets_another_class_and_another_split(flawed, tmp_path):
    bar, _, cards, _ = review(flawed, tmp_path)
    controls(cards.children[0])["Class"].value = "blue"
    assert decisions(tmp_path) == {"Val/red/copy.png": {"relabel": "blue"}}
    assert controls(cards.children[0])["Class"].value == "blue"
    controls(cards.children[0])["Split"].value = "train"
    assert decisions(tmp_path) == {"Val/red/copy.png": {"relabel": "blue", "move": "train"}}
    assert "decision: <b>relabel blue, move train<" in cards.children[0].children[1].value
    assert controls(cards.children[0])["Class"].value == "blue"
    controls(bar)["Undo"].click()
    assert decisions(tmp_path) == {"Val/red/copy.png": {"relabel": "blue"}}
    assert controls(cards.children[0])["Split"].value == "val"


def test_a_decision_is_undone(flawed, tmp_path):
    bar, _, cards, status = review(flawed, tmp_path)
    controls(cards.children[0])["Keep"].click()
    controls(bar)["Undo"].click()
    assert decisions(tmp_path) == {}
    assert "Undone: Val/red/copy.png" in status.value
    controls(bar)["Undo"].click()
    assert "nothing to undo" in status.value


def test_the_buttons_go_from_finding_to_finding(flawed, tmp_path):
    bar, heading, cards, _ = review(flawed, tmp_path)
    bar.children[0].value = "all findings"
    total = len(bar.children[0].options) - 1
    assert total >= 2
    first = heading.value
    controls(bar)["Next"].click()
    assert heading.value != first
    controls(bar)["Back"].click()
    controls(bar)["Back"].click()  # there is nothing before the first
    assert heading.value == first
    bar.children[0].value = "not an image"
    assert "cannot be shown" in cards.children[0].children[0].value


def test_every_control_can_be_reached_with_the_keyboard(flawed, tmp_path):
    """Buttons, menus and number fields are in the tab order; nothing hangs on a click elsewhere."""
    bar, _, cards, _ = review(flawed, tmp_path)
    kinds = {type(control) for control in [*controls(bar).values(), *controls(cards).values()]}
    buttons = {ipywidgets.Button, ipywidgets.ToggleButton}
    assert kinds <= {*buttons, ipywidgets.Dropdown, ipywidgets.BoundedIntText}
    assert all(button.description for button in controls(cards).values())


def test_a_data_set_without_findings_says_so(photos, tmp_path):
    audit = audit_dataset(photos, image_size=16, cache_dir=tmp_path / "cache")
    audit = replace(audit, issues=audit.issues.head(0))
    bar, heading, *_ = review_dataset(audit, tmp_path / "decisions.csv").children
    assert "found nothing" in heading.value
    for button in ("Next", "Back", "Undo"):
        controls(bar)[button].click()
    assert "found nothing" in heading.value


@pytest.fixture
def suspicious(flawed):
    """Five label errors as `find_label_errors` lists them, and one that is not in the data."""
    paths = [str(flawed / f"Train/red/{i}.png") for i in range(5)] + ["/elsewhere/0.png"]
    return pd.DataFrame({"path": paths, "label": "red", "suggested": "blue", "margin": -0.9})


def labels(suspicious, flawed, tmp_path):
    widget = review_label_errors(suspicious, flawed, tmp_path / "decisions.csv")
    assert "resnet-ft-keys" in widget._dom_classes  # what the script looks for
    return widget.children


def key(widget: ipywidgets.Widget, name: str) -> ipywidgets.Button:
    """The button that a key presses."""
    found = [
        one for one in controls(widget).values() if f"resnet-ft-key-{name}" in one._dom_classes
    ]
    (button,) = found
    return button


def test_suspicious_labels_are_reviewed_in_the_same_widget(suspicious, flawed, tmp_path):
    bar, heading, cards, _, keys = labels(suspicious, flawed, tmp_path)
    assert "1 of 5 · label to check</b>: labelled red, rather blue" in heading.value
    key(keys, "1").click()  # of blue and red
    assert decisions(tmp_path) == {"Train/red/0.png": {"relabel": "blue"}}
    assert controls(cards.children[0])["Class"].value == "blue"
    key(bar, "j").click()
    assert "2 of 5" in heading.value
    key(bar, "u").click()
    assert decisions(tmp_path) == {} and "1 of 5" in heading.value  # back to what was undone
    empty = review_label_errors(suspicious.head(0), flawed, tmp_path / "decisions.csv")
    assert "no labels to check" in empty.children[1].value


def test_after_keep_and_exclude_comes_the_next_finding(suspicious, flawed, tmp_path):
    bar, heading, cards, status, _ = labels(suspicious, flawed, tmp_path)
    controls(cards)["Keep"].click()
    assert "2 of 5" in heading.value and "1 of 5 decided" in status.value
    for _ in range(4):
        controls(cards)["Exclude"].click()
    assert "5 of 5" in heading.value and "This is the last one" in status.value
    assert [*decisions(tmp_path).values()] == [{"keep": ""}] + [{"exclude": ""}] * 4
    key(bar, "k").click()
    assert "4 of 5" in heading.value


def test_several_findings_are_decided_and_undone_at_once(suspicious, flawed, tmp_path):
    bar, heading, cards, status, _ = labels(suspicious, flawed, tmp_path)
    controls(bar)["Several at once"].value = True
    assert "1 to 5 of 5" in heading.value and len(cards.children) == 1 + 5
    controls(cards)["Exclude chosen"].click()
    assert "Nothing is chosen" in status.value
    controls(cards)["0.png"].value = controls(cards)["3.png"].value = True
    controls(cards)["Exclude chosen"].click()
    excluded = {"exclude": ""}
    assert decisions(tmp_path) == {"Train/red/0.png": excluded, "Train/red/3.png": excluded}
    controls(cards)["Choose all"].click()
    controls(cards)["Keep chosen"].click()
    assert [*decisions(tmp_path).values()] == [{"keep": ""}] * 5
    controls(bar)["Undo"].click()
    assert len(decisions(tmp_path)) == 2
    controls(bar)["Several at once"].value = False
    assert "1 of 5" in heading.value


def test_pages_of_several_go_on_where_the_last_one_ended(flawed, tmp_path):
    paths = [str(path) for path in sorted((flawed / "Train").glob("*/*.png"))]
    errors = pd.DataFrame({"path": paths, "label": "red", "suggested": "blue"})
    bar, heading, cards, *_ = labels(errors, flawed, tmp_path)
    controls(bar)["Several at once"].value = True
    assert "1 to 12 of 17" in heading.value
    controls(cards)["Choose all"].click()
    controls(cards)["Exclude chosen"].click()
    assert len(decisions(tmp_path)) == 12
    assert "1 to 12 of 17" in heading.value  # for those that were not chosen
    controls(bar)["Next"].click()
    assert "13 to 17 of 17" in heading.value
    controls(bar)["Next"].click()
    assert "13 to 17 of 17" in heading.value
    controls(bar)["Back"].click()
    assert "1 to 12 of 17" in heading.value
