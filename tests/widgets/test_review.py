"""The review of an audit's findings, driven as a browser would."""

import shutil
from dataclasses import replace

import ipywidgets
import pytest

from resnet_ft import audit_dataset, make_dataloaders, read_decisions, review_dataset


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
    bar, heading, cards, status = widget.children
    bar.children[0].value = "leakage"
    return bar, heading, cards, status


def decisions(tmp_path) -> dict[str, tuple[str, str]]:
    rows = read_decisions(tmp_path / "decisions.csv").itertuples()
    return {row.path: (row.decision, row.value) for row in rows}


def test_copies_are_shown_side_by_side_and_decided_one_by_one(flawed, tmp_path):
    _, heading, cards, status = review(flawed, tmp_path)
    assert "1 of 1 · leakage" in heading.value
    copy, original = cards.children
    assert "Val/red/copy.png" in copy.children[1].value
    assert "0 of 1 decided" in status.value
    controls(original)["Exclude"].click()
    assert decisions(tmp_path) == {"Train/red/0.png": ("exclude", "")}
    assert "decision: <b>exclude" in cards.children[1].children[1].value
    assert "1 of 1 decided" in status.value
    loaders = make_dataloaders(
        flawed, image_size=32, num_workers=0, decisions=tmp_path / "decisions.csv"
    )
    assert len(loaders["train"].dataset) == 16


def test_an_image_gets_another_class_or_split(flawed, tmp_path):
    _, _, cards, _ = review(flawed, tmp_path)
    controls(cards.children[0])["Class"].value = "blue"
    assert decisions(tmp_path) == {"Val/red/copy.png": ("relabel", "blue")}
    assert controls(cards.children[0])["Class"].value == "blue"
    controls(cards.children[0])["Split"].value = "train"
    assert decisions(tmp_path) == {"Val/red/copy.png": ("move", "train")}


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
    assert kinds <= {ipywidgets.Button, ipywidgets.Dropdown, ipywidgets.BoundedIntText}
    assert all(button.description for button in controls(cards).values())


def test_a_data_set_without_findings_says_so(photos, tmp_path):
    audit = audit_dataset(photos, image_size=16, cache_dir=tmp_path / "cache")
    audit = replace(audit, issues=audit.issues.head(0))
    _, heading, *_ = review_dataset(audit, tmp_path / "decisions.csv").children
    assert "found nothing" in heading.value
