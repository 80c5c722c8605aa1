"""Accuracy against images per class, with the power law and its band."""

from typing import TYPE_CHECKING

from resnet_ft.evaluation.learning_curve import LearningCurve
from resnet_ft.visualize.style import BLUE, GREY, ORANGE, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_learning_curve(curve: LearningCurve, *, ax: "Axes | None" = None) -> "Axes":
    """The draws of a `learning_curve`, the law through them, and what twice the images promise."""
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    points, law = curve.points, curve.law
    sizes = sorted(set(points["images"]))
    with drawing(ax, (5.2, 4.2)) as axes:
        if not law.empty:
            axes.fill_between(law["images"], law["low"], law["high"], color=BLUE, alpha=0.15, lw=0)
            measured = law["images"] <= sizes[-1]
            axes.plot("images", "accuracy", data=law[measured], color=BLUE, label="power law")
            ahead = law[law["images"] >= sizes[-1]]
            axes.plot("images", "accuracy", "--", data=ahead, color=BLUE, label="_")
            end = ahead.iloc[-1]
            axes.plot(end["images"], end["accuracy"], "D", ms=8, color=ORANGE, label="expected")
            sizes.append(end["images"])
        label = "solved on so many"
        axes.plot("images", "accuracy", "o", data=points, ms=5, color=GREY, label=label)
        axes.set(xscale="log", xlabel="training images per class", ylabel="validation accuracy")
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_title(
            "Of the head on pretrained features:\n" + curve.sentence.replace(": ", ":\n")
        )
        axes.legend(loc="lower right")
    return axes
