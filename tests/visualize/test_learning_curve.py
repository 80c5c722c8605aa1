import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from resnet_ft import LearningCurve, plot_learning_curve

POINTS = pd.DataFrame({"images": [12, 12, 25, 50, 100], "accuracy": [0.8, 0.82, 0.85, 0.88, 0.9]})
LAW = pd.DataFrame({"images": [12, 50, 100, 200], "accuracy": [0.81, 0.88, 0.9, 0.914]})
LAW = LAW.assign(low=LAW["accuracy"] - 0.02, high=LAW["accuracy"] + 0.02)


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
