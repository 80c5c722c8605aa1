import io
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from resnet_ft import (
    ParameterError,
    Predictions,
    confused_pairs,
    percent,
    plot_class_counts,
    plot_class_scores,
    plot_confused_pairs,
    plot_confusion_matrix,
    plot_histories,
    plot_history,
    plot_image_sizes,
)
from resnet_ft.evaluation.scores import wilson_interval

THREE = Predictions(
    pd.DataFrame({"label": ["$a$", "$a$", "b"], "predicted": ["$a$", "b", "b"], "confidence": 0.5}),
    np.zeros((3, 2)),
    ["$a$", "b"],
)
HISTORY = pd.DataFrame({"epoch": [1, 2], "val_accuracy": [0.5, 0.6], "val_loss": [0.7, 0.6]})


@pytest.fixture
def history():
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "train_loss": [1.0, 0.5, 0.3],
            "train_accuracy": [0.5, 0.7, 0.9],
            "val_loss": [0.9, 0.7, 0.6],
            "val_accuracy": [0.6, 0.8, 0.8],
        }
    )


def test_the_history_marks_the_epoch_whose_weights_are_kept(history):
    figure = plot_history(history)
    left, right = figure.axes
    assert right.get_title(loc="left") == "Best: 80.0%, after epoch 3"  # a tie, by the lower loss
    assert right.lines[-1].get_xdata()[0] == 3
    assert right.get_xlabel() == "epoch"
    assert left.get_ylabel() == "loss (cross-entropy)"
    assert np.array_equal(lines(left)["val"], history["val_loss"])


@pytest.fixture
def fine_tuned(history):
    """As `fine_tune` returns it: the head first, and averages of the weights beside the epochs."""
    head = pd.DataFrame({"epoch": [0], "val_loss": [0.8], "val_accuracy": [0.7]})
    head = head.assign(train_loss=0.85, train_accuracy=0.65)
    averages = {"ema_val_loss": [0.9, 0.65, 0.5], "ema_val_accuracy": [0.5, 0.85, 0.85]}
    return pd.concat([head, history.assign(**averages)], ignore_index=True)


def lines(ax):
    """The heights of the curves that have a name."""
    named = [line for line in ax.lines if not line.get_label().startswith("_")]
    return {line.get_label(): line.get_ydata() for line in named}


def title(figure):
    return figure.axes[1].get_title(loc="left")


def test_the_head_and_the_averages_are_drawn_beside_the_epochs(fine_tuned):
    left, right = plot_history(fine_tuned).axes
    assert np.array_equal(lines(left)["val"], [0.9, 0.7, 0.6])
    assert np.array_equal(lines(right)["val, averaged weights"], [0.5, 0.85, 0.85])
    assert set(lines(right)["val, head alone"]) == {0.7}
    assert left.get_xlim()[0] < 0
    assert left.get_title(loc="left") == "Lowest validation loss: 0.500"  # that of an average


def test_the_best_may_be_an_average_or_the_head_alone(fine_tuned):
    assert title(plot_history(fine_tuned)) == "Best: 85.0%, average after epoch 3"
    fine_tuned.loc[0, "val_accuracy"] = 0.9
    figure = plot_history(fine_tuned)
    assert title(figure) == "Best: 90.0%, the head alone"
    assert figure.axes[1].lines[-1].get_xdata()[0] == 0


def test_what_lies_between_head_and_average_is_drawn_and_named_where_it_is_the_best(fine_tuned):
    fine_tuned["between_val_loss"] = [np.nan, np.nan, np.nan, 0.4]
    fine_tuned["between_val_accuracy"] = [np.nan, np.nan, np.nan, 0.9]
    fine_tuned["between_share"] = 0.5
    figure = plot_history(fine_tuned)
    assert title(figure) == "Best: 90.0%, 50% of the way\nfrom head to average"
    assert lines(figure.axes[0])["val, between head and average"][-1] == 0.4


def test_an_average_that_is_as_good_as_its_epoch_is_not_named(fine_tuned):
    fine_tuned["ema_val_loss"] = fine_tuned["val_loss"]
    fine_tuned["ema_val_accuracy"] = fine_tuned["val_accuracy"]
    assert title(plot_history(fine_tuned)) == "Best: 80.0%, after epoch 3"


def test_a_head_alone_can_be_drawn(fine_tuned):
    assert title(plot_history(fine_tuned.head(1))) == "Best: 70.0%, the head alone"
    of_the_head = fine_tuned.head(1).drop(columns=["ema_val_loss", "ema_val_accuracy"])
    assert title(plot_history(of_the_head)) == "Best: 70.0%, the head alone"


def test_a_history_of_one_epoch_can_be_drawn(history):
    assert "epoch 1" in plot_history(history.head(1)).axes[1].get_title(loc="left")


def test_a_history_with_values_that_are_not_numbers_is_drawn_with_gaps(history):
    history["val_loss"] = np.nan
    left, right = plot_history(history).axes
    assert title(left.figure) == "Best: 80.0%, after epoch 2" and left.get_title(loc="left")
    assert np.array_equal(lines(right)["val"], history["val_accuracy"])
    history["val_accuracy"] = np.nan
    assert title(plot_history(history.head(1))) == "Best: no accuracy is a number"
    history["val_loss"] = [0.9, np.nan, 0.6]
    left = plot_history(history).axes[0]
    assert left.get_title(loc="left") == "Lowest validation loss: 0.600"


def test_a_history_without_epochs_is_refused(history):
    with pytest.raises(ParameterError, match="no epochs to show"):
        plot_history(history.head(0))


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


def test_learning_curves_of_several_runs_share_a_plot(history, fine_tuned):
    ax = plot_histories({"plain": history, "$fine$_tuned": fine_tuned, "none": history.head(0)})
    curves = lines(ax)
    assert list(curves) == ["plain, best 80.0%", "$fine$_tuned, best 85.0%"]
    assert np.array_equal(curves["$fine$_tuned, best 85.0%"], fine_tuned["val_accuracy"])
    assert ax.get_title(loc="left") == "Highest: $fine$_tuned"
    looks = {(line.get_color(), line.get_marker()) for line in ax.lines}
    assert len(looks) == 2
    with pytest.raises(ParameterError, match="no history"):
        plot_histories({"none": history.head(0)})


@pytest.mark.parametrize("column", ["train_loss", "val_loss", "train_accuracy", "val_accuracy"])
def test_a_history_without_a_column_has_an_empty_plot_in_its_place(column, history):
    measure = column.split("_")[1]
    top, bottom = plot_history(history.drop(columns=column)).axes
    ax = top if measure == "loss" else bottom
    assert np.isnan(lines(ax)[column.split("_")[0]]).all()


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


def test_the_history_is_drawn_beside_what_guessing_would_get(history):
    right = plot_history(history, baseline=0.54).axes[1]
    assert [text.get_text() for text in right.texts] == ["the largest class: 54.0%"]
    assert any(set(line.get_ydata()) == {0.54} for line in right.lines)
    assert title(right.figure) == "Best: 80.0%, after epoch 3"
    assert title(plot_history(history, baseline=0.8)).endswith(",\nno better than guessing")
    history["val_accuracy"] = [0.5, 0.549, 0.54]  # 84 of 153 are right, and 83 are of one class
    figure = plot_history(history, baseline=0.542, num_val=153)
    assert title(figure) == "Best: 54.9%, after epoch 2,\nhardly better than guessing"
    figure = plot_history(history, baseline=0.542, num_val=100_000)
    assert title(figure) == "Best: 54.9%, after epoch 2"
    assert plot_history(history, baseline=0.05).axes[1].get_ylim()[0] <= 0.05


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
