"""How far confidence can be trusted, as figures: reliability, and accuracy against coverage."""

from typing import TYPE_CHECKING, Any

from resnet_ft.evaluation.calibration import (
    calibration_scores,
    coverage_at,
    coverage_curve,
    cross_calibrated,
    reliability,
)
from resnet_ft.evaluation.predictions import Predictions
from resnet_ft.visualize.style import BLUE, GREY, ORANGE, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_calibration(predictions: Predictions, *, ax: "Axes | None" = None) -> "Axes":
    """Accuracy against confidence (see `reliability`), before calibration and after.

    After, each image has a temperature that was found without it. In the grey band, a perfectly
    calibrated model would lie 95 times in 100. The title has the expected calibration errors, of
    bins with equally many images; there is no "after" where nothing speaks for a temperature.
    """
    temperature, judged = cross_calibrated(predictions)
    before, after = calibration_scores(predictions), calibration_scores(judged)
    bins, errors = reliability(judged), f"{before['ece']:.1%}"
    lines = {"as the model says": (reliability(predictions), "D-", ORANGE)}
    if temperature != 1:
        errors += f", after {after['ece']:.1%}"
        lines[f"with temperature {temperature:.2f}"] = (bins, "o-", BLUE)
    with drawing(ax, (4.6, 4.4)) as ax:
        band = bins["confidence"], bins["from"], bins["to"]
        ax.fill_between(*band, color=GREY, alpha=0.25, lw=0, label="perfect, on so few images")
        for name, (found, marker, colour) in lines.items():
            line = found["confidence"], found["accuracy"], marker
            ax.plot(*line, lw=1.2, ms=6, color=colour, label=name, clip_on=False)
        limits = min(0.9, *ax.dataLim.min), 1  # not all between 99.9% and 100%
        ax.axline((1, 1), slope=1, color=GREY, lw=1, ls="--")
        ax.set_title(f"Calibration error {errors}\n(perfect: up to {after['band']:.1%})")
        ax.legend(loc="upper left", fontsize=9)
        _in_percent(ax, xlabel="confidence", ylabel="accuracy", xlim=limits, ylim=limits)
    return ax


def plot_coverage(
    predictions: Predictions, *, accuracy: float = 0.95, ax: "Axes | None" = None
) -> "Axes":
    """Accuracy against the share of images that are answered (see `coverage_curve`).

    The band is its interval at 95% confidence; the diamond is the threshold for `accuracy`.
    """
    curve, (threshold, _) = coverage_curve(predictions), coverage_at(predictions, accuracy)
    title, lowest = f"No threshold gives {accuracy:.0%} accuracy", curve["accuracy"].min()
    with drawing(ax, (5.2, 3.8)) as ax:
        ax.fill_between(curve["coverage"], curve["from"], curve["to"], color=BLUE, alpha=0.2, lw=0)
        ax.plot(curve["coverage"], curve["accuracy"], color=BLUE, clip_on=False)
        if threshold is not None:
            chosen = curve[curve["threshold"] >= threshold].iloc[-1]
            ax.plot(chosen["coverage"], chosen["accuracy"], "D", ms=9, color=ORANGE, clip_on=False)
            title = f"{accuracy:.0%} accuracy on {chosen['coverage']:.0%} of the images:"
            title += f"\nanswers from {threshold:.2f} confidence on"
        ax.axhline(accuracy, color=GREY, lw=1, ls="--")
        ylim = max(0, min(accuracy, lowest) - 0.05), 1
        labels = {"xlabel": "images that are answered", "ylabel": "accuracy of the answers"}
        _in_percent(ax, **labels, xlim=(0, 1), ylim=ylim, title=title)
    return ax


def _in_percent(ax: "Axes", **labels_and_limits: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    ax.set(**labels_and_limits)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
