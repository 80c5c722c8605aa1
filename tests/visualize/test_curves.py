import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from resnet_ft import (
    LearningCurve,
    ParameterError,
    plot_histories,
    plot_history,
    plot_learning_curve,
)

POINTS = pd.DataFrame({"images": [12, 12, 25, 50, 100], "accuracy": [0.8, 0.82, 0.85, 0.88, 0.9]})
LAW = pd.DataFrame({"images": [12, 50, 100, 200], "accuracy": [0.81, 0.88, 0.9, 0.914]})
LAW = LAW.assign(low=LAW["accuracy"] - 0.02, high=LAW["accuracy"] + 0.02)


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


def test_the_plot_shows_every_draw_and_what_doubling_promises():
    ax = plot_learning_curve(LearningCurve(POINTS, LAW, (0.014, 0.006, 0.021)))
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["solved on so many"].get_xydata(), POINTS.to_numpy())
    assert lines["expected"].get_xydata().tolist() == [[200, 0.914]]
    measured, ahead = ax.lines[:2]
    assert measured.get_xdata()[-1] == ahead.get_xdata()[0] == 100  # dashed from there on
    assert ahead.get_linestyle() == "--"
    assert "head on pretrained features" in ax.get_title(loc="left")
    assert "about +1.4 points (0.6 to 2.1)" in ax.get_title(loc="left")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["12", "25", "50", "100", "200"]


def test_without_a_law_the_draws_are_shown_in_the_axes_that_were_given():
    ax = plt.subplots()[1]
    curve = LearningCurve(POINTS, pd.DataFrame(), (np.nan, np.nan, np.nan))
    assert plot_learning_curve(curve, ax=ax) is ax
    assert len(ax.lines) == 1 and "too few" in ax.get_title(loc="left")
