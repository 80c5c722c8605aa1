import shutil

import numpy as np
import pandas as pd
import pytest

from resnet_ft import (
    ParameterError,
    index_dataset,
    plot_class_means,
    show_class,
    show_classes,
    show_issues,
    show_label_errors,
    show_pairs,
)


def test_the_mean_of_a_class_has_the_colour_of_its_images(photos):
    (photos / "Train" / "red" / "broken.png").write_bytes(b"no image")
    blue, red = plot_class_means(index_dataset(photos)).axes
    assert np.allclose(blue.images[0].get_array().mean(axis=(0, 1)), (40, 60, 200), atol=6)
    assert blue.get_title() == "blue (9)"
    assert red.get_title() == "red (8)"


def test_a_contact_sheet_steps_over_what_cannot_be_read(photos):
    (photos / "Train" / "red" / "0.png").write_bytes(b"no image")
    figure = show_class(index_dataset(photos), "red", num_images=6)
    assert sum(bool(ax.images) for ax in figure.axes) == 6
    titles = [ax.get_title() for ax in show_classes(index_dataset(photos)).axes]
    assert titles == ["blue", "red"]
    with pytest.raises(ParameterError, match="'green'"):
        show_class(index_dataset(photos), "green")


def test_no_readable_image_is_said(photos):
    with pytest.raises(ParameterError, match="'test'"):
        plot_class_means(index_dataset(photos), split="test")


def test_copies_stand_side_by_side_with_class_and_split(photos):
    pairs = pd.DataFrame({"path": ["Val/red/0.png"], "other": ["Train/blue/1.png"]})
    figure = show_pairs(photos, pairs)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["Val/red\n0.png", "Train/blue\n1.png"]
    assert figure.get_suptitle() == "1 pair of copies"
    with pytest.raises(ParameterError, match="no pairs"):
        show_pairs(photos, pairs.head(0))


def test_label_errors_are_shown_with_what_is_suggested(photos):
    errors = pd.DataFrame(
        {"path": [photos / "Val/red/0.png"] * 3, "label": ["red"] * 3, "suggested": ["blue"] * 3}
    )
    figure = show_label_errors(errors, num_images=2)
    assert figure.axes[0].get_title() == "red?\nrather blue"
    assert figure.get_suptitle() == "2 of 3 labels to look at"


def test_findings_are_a_table_with_thumbnails(photos):
    shutil.move(photos / "Val/red/0.png", photos / "Val/red/<b>.png")
    (photos / "notes.txt").write_text("junk")
    issues = pd.DataFrame(
        {
            "path": ["Val/red/<b>.png", "notes.txt", "Val/red/gone.png"],
            "issue": ["blurred", "other file", "unreadable"],
            "severity": ["warning", "info", "error"],
            "detail": ["a", "b", "c"],
        }
    )
    html = show_issues(photos, issues)._repr_html_()
    assert html.count("data:image/jpeg;base64,") == 1
    assert "Val/red/&lt;b&gt;.png" in html and "<b>.png" not in html
    assert "cannot be shown" in html
    assert html.count("<tr>") == 4
    assert "2 of 3 findings" in show_issues(photos, issues, num_issues=2)._repr_html_()
