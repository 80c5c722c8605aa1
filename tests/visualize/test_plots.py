import io
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from resnet_ft import (
    Predictions,
    confused_pairs,
    percent,
    plot_class_counts,
    plot_class_scores,
    plot_confused_pairs,
    plot_confusion_matrix,
    plot_histories,
    plot_image_sizes,
)
from resnet_ft.evaluation.scores import wilson_interval

THREE = Predictions(
    pd.DataFrame({"label": ["$a$", "$a$", "b"], "predicted": ["$a$", "b", "b"], "confidence": 0.5}),
    np.zeros((3, 2)),
    ["$a$", "b"],
)
HISTORY = pd.DataFrame({"epoch": [1, 2], "val_accuracy": [0.5, 0.6], "val_loss": [0.7, 0.6]})


def test_the_confusion_matrix_shows_every_count():
    table = pd.DataFrame({"label": list("aab"), "predicted": list("abb")})
    ax = plot_confusion_matrix(Predictions(table, np.zeros((3, 2)), ["a", "b"]))
    assert [text.get_text() for text in ax.texts] == ["1\n50%", "1\n50%", "0", "1\n100%"]
    assert ax.get_title(loc="left") == "66.7% of 3 images are correct"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    ax = plot_confusion_matrix(Predictions(table, np.zeros((3, 2)), ["a", "b"]), split="test")
    assert ax.get_title(loc="left") == "66.7% of 3 test images\nare correct"


def test_a_confusion_matrix_of_many_classes_stays_a_page():
    names = [f"class {i}" for i in range(100)]
    table = pd.DataFrame({"label": names, "predicted": names})
    ax = plot_confusion_matrix(Predictions(table, np.zeros((100, 100)), names))
    assert len(ax.texts) == 0 and ax.figure.get_size_inches().max() <= 15


def test_a_matrix_of_a_thousand_classes_is_drawn_quickly_with_the_confused_ones_side_by_side():
    names = [f"class {i}" for i in range(1000)]
    table = pd.DataFrame({"label": names * 2, "predicted": names + names})
    table.loc[[3, 1007], "predicted"] = "class 900"
    predictions = Predictions(table, np.zeros((2000, 0)), names)
    started = time.perf_counter()
    matrix = plot_confusion_matrix(predictions)
    matrix.figure.savefig(io.BytesIO(), format="png")
    assert time.perf_counter() - started < 10  # 33 s with a number in each cell
    assert len(matrix.texts) == 0 and matrix.figure.get_size_inches().max() < 8
    assert matrix.get_xlabel() == "predicted (one of 20 is named)"
    named = [text.get_text() for text in matrix.get_yticklabels()]
    assert len(set(named)) == 50 and {*named} <= {*names}
    shares = matrix.images[0].get_array()
    rows, columns = np.nonzero(np.triu(shares + shares.T, 1))
    assert sorted(columns - rows) in ([1, 1], [1, 2]) and set(shares[rows, columns]) <= {0, 0.5}


def test_of_many_class_counts_some_are_named():
    names = [f"class {i}" for i in range(200)]
    counts = plot_class_counts(pd.DataFrame({"train": [1] * 200}, index=names))
    assert [text.get_text() for text in counts.get_yticklabels()] == names[199::-2]
    assert list(counts.get_yticks()) == list(range(0, 200, 2))
    assert counts.figure.get_size_inches()[1] < 50


@pytest.fixture
def confused(photos):
    """Of five images, red ones, two are taken for blue, and one the other way."""
    files = [str(photos / "Val" / "red" / f"{i}.png") for i in range(3)]
    labels, predicted = (
        ["red", "red", "red", "blue", "blue"],
        ["blue", "blue", "red", "blue", "red"],
    )
    confidence = [0.7, 0.9, 0.8, 0.6, 0.5]
    columns = {"path": [*files, None, None], "label": labels, "predicted": predicted}
    table = pd.DataFrame({**columns, "confidence": confidence})
    return Predictions(table, np.zeros((5, 2)), ["blue", "red"])


def test_confused_pairs_are_counted_and_shown_with_their_most_confident_images(confused):
    pairs = confused_pairs(confused)
    assert pairs.to_numpy().tolist() == [["red", "blue", 2, 3], ["blue", "red", 1, 2]]
    figure = plot_confused_pairs(confused)
    bars = figure.axes[0]
    assert bars.get_title(loc="left") == "3 of 3 mistakes"
    written = [text.get_text() for text in bars.texts]
    assert written == ["2 of 3", "1 of 2", "red taken for blue", "blue taken for red"]
    assert [bar.get_width() for bar in bars.patches] == [2, 1]
    assert [len(ax.images) for ax in figure.axes[1:]] == [1, 1, 0, 0, 0, 0]


def test_confused_pairs_without_mistakes_or_with_axes_are_bars_alone(confused):
    right = confused.table.assign(predicted=confused.table["label"])
    figure = plot_confused_pairs(Predictions(right, np.zeros((5, 2)), ["blue", "red"]))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["No mistakes"]
    _, ax = plt.subplots()
    assert plot_confused_pairs(confused, ax=ax) is ax.figure
    assert ax.figure.axes == [ax] and len(ax.patches) == 2


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plot_class_counts(pd.DataFrame({"train": [5, 9]}, index=["$a$", "b"]), ax=ax),
        lambda ax: plot_image_sizes(pd.DataFrame({"width": [9], "height": [8]}), 224, ax=ax),
        lambda ax: plot_confusion_matrix(THREE, ax=ax),
        lambda ax: plot_class_scores(THREE, ax=ax),
        lambda ax: plot_confused_pairs(THREE, ax=ax).axes[0],
        lambda ax: plot_histories({"$a$": HISTORY}, ax=ax),
    ],
)
def test_a_plot_is_drawn_into_axes_that_are_given_and_shows_names_as_they_are(draw):
    _, ax = plt.subplots()
    assert draw(ax) is ax
    ax.figure.savefig(io.BytesIO(), format="png")
    assert len(plt.get_fignums()) == 1
    assert not [text for text in ax.findobj(Text) if "$" in str(text) and text.get_parse_math()]


def test_class_counts_have_a_bar_for_each_class_and_split():
    counts = pd.DataFrame({"train": [5, 9], "val": [2, 3]}, index=["a", "b"])
    ax = plot_class_counts(counts)
    assert sorted(bar.get_width() for bar in ax.patches) == [2, 3, 5, 9]
    assert ax.get_title(loc="left") == "2 classes, 5 to 9 training images each"
    assert ax.get_xlabel() == "images"


def test_the_legend_has_the_order_of_the_bars():
    counts = pd.DataFrame({"train": [5, 9], "val": [2, 3], "test": [1, 4]}, index=["a", "b"])
    ax = plot_class_counts(counts)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train", "val", "test"]
    heights = {round(bar.get_width()): bar.get_y() for bar in ax.patches}
    assert heights[5] > heights[2] > heights[1]  # from above, as in the legend
    colours = {round(bar.get_width()): bar.get_facecolor() for bar in ax.patches}
    handles = [handle.patches[0] for handle in ax.get_legend_handles_labels()[0]][::-1]
    assert [handle.get_facecolor() for handle in handles] == [colours[n] for n in (5, 2, 1)]


def test_image_sizes_say_how_many_are_small():
    sizes = pd.DataFrame({"width": [100, 300, 300, 300], "height": [300, 300, 300, 200]})
    assert plot_image_sizes(sizes, 224).get_title(loc="left").startswith("2 of 4")


def test_image_sizes_far_apart_are_drawn_with_the_square_in_sight():
    sizes = pd.DataFrame({"width": [130, 3000], "height": [130, 2000]})
    ax = plot_image_sizes(sizes, 64)
    left, right = ax.get_xlim()
    assert ax.get_xscale() == "log" and left < 64 and right > 3000
    ax.figure.canvas.draw()
    ticks = [text.get_text() for text in ax.get_xticklabels()]
    assert {"100", "200", "500", "1,000", "2,000"} <= set(ticks)
    assert not [text for text in ax.get_xticklabels(minor=True) if text.get_text()]
    assert ax.get_title(loc="left") == "0 of 2 images are smaller than the line"
    assert ax.get_legend().get_texts()[0].get_text() == "64 pixels"


def test_class_scores_are_drawn_with_the_worst_class_on_top():
    table = pd.DataFrame({"label": list("aaaabbcc"), "predicted": list("aaaababc")})
    ax = plot_class_scores(Predictions(table, np.zeros((8, 3)), list("abc")))
    # b: 1 of 2 that were called b is one, 1 of 2 is found. c: 1 of 1, and 1 of 2.
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "c", "b"]
    low, high = wilson_interval(0.5, 2)
    ends = [line.get_segments()[0][:, 0].tolist() for line in ax.collections]
    assert [pytest.approx(one) for one in ends].count([low, high]) == 3
    drawn = {line.get_label(): list(line.get_xdata()) for line in ax.lines}
    assert drawn["precision"] == pytest.approx([0.8, 1, 0.5])
    assert drawn["recall"] == pytest.approx([1, 0.5, 0.5])
    assert ax.get_title(loc="left") == "Lowest: b, with an F1 of 50.0%"


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.996, "99.6%"), (0.9996, ">99.9%"), (1.0, ">99.9%"), (0.0004, "<0.1%"), (0.25, "25.0%")],
)
def test_a_probability_is_never_written_as_certainty(probability, text):
    assert percent(probability) == text
