import numpy as np
import pytest
from confidence import from_confidence, overconfident
from matplotlib import pyplot as plt

from resnet_ft import (
    calibration_scores,
    coverage_curve,
    fit_temperature,
    plot_calibration,
    plot_coverage,
    reliability,
)


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_reliability_is_drawn_before_and_after_with_the_band_of_a_perfect_model():
    said = overconfident(3, images=300)
    ax = plot_calibration(said)
    before, after = "as the model says", f"with temperature {fit_temperature(said):.2f}"
    drawn, bins = lines(ax), reliability(said)
    assert np.allclose(drawn[before].get_xdata(), bins["confidence"])
    assert np.allclose(drawn[before].get_ydata(), bins["accuracy"])
    assert drawn[before].get_marker() != drawn[after].get_marker()
    assert len(ax.collections) == 1
    (band,) = ax.collections[0].get_paths()
    distance = {name: np.abs(np.subtract(*drawn[name].get_data())) for name in (before, after)}
    assert distance[after].mean() < distance[before].mean() / 2  # nearer to the diagonal
    assert band.vertices[:, 1].max() <= 1
    assert f"Calibration error {calibration_scores(said)['ece']:.1%}, after" in ax.get_title("left")
    lowest = ax.get_ylim()[0]
    assert all(line.get_ydata().min() >= lowest for name, line in drawn.items() if "_" not in name)


def test_confidence_that_needs_no_temperature_has_one_line():
    ax = plot_calibration(overconfident(1, images=150))
    assert not any("temperature" in name for name in lines(ax))
    assert "after" not in ax.get_title("left")


def test_coverage_marks_the_threshold():
    said = overconfident(1, images=300)
    ax, curve = plot_coverage(said, accuracy=0.9), coverage_curve(said)
    diamond = next(line for line in ax.get_lines() if line.get_marker() == "D")
    chosen = curve[curve["accuracy"] >= 0.9].iloc[-1]
    assert diamond.get_xdata()[0] == pytest.approx(chosen["coverage"])
    assert f"90% accuracy on {chosen['coverage']:.0%} of the images" in ax.get_title("left")


def test_an_accuracy_out_of_reach_is_said():
    ax = plot_coverage(from_confidence([0.9, 0.8], [0, 0]))
    assert ax.get_title("left") == "No threshold gives 95% accuracy"


def test_both_draw_into_given_axes():
    _, (left, right) = plt.subplots(1, 2)
    said = overconfident(2, images=100)
    assert plot_calibration(said, ax=left) is left and plot_coverage(said, ax=right) is right
    assert left.get_lines() and right.get_lines()
