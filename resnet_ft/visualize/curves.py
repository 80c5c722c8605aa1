"""How a model improves: over the epochs of a run, of several runs, and over images per class."""

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from resnet_ft.errors import ParameterError
from resnet_ft.evaluation.learning_curve import LearningCurve
from resnet_ft.evaluation.scores import scored_weights, wilson_interval
from resnet_ft.notebook import shorten
from resnet_ft.visualize.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, drawing, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_IN_A_ROW = 2  # entries of a legend below two plots
_LONGEST_NAME = 24
_LOOKS: list[dict[str, Any]] = [
    {"color": colour, "marker": marker, "ls": line}
    for colour, marker, line in (
        *((BLUE, "o", "-"), (ORANGE, "D", "--"), (GREEN, "s", "-.")),
        *((RED, "^", "-"), (PURPLE, "v", "--"), (SKY, "P", "-.")),
    )
]


def plot_history(
    history: pd.DataFrame, *, baseline: float | None = None, num_val: int | None = None
) -> "Figure":
    """Loss and accuracy per epoch, for training and validation, with the best epoch marked.

    Epoch 0, the head alone, is a diamond with a dashed line at its height; the average of the
    weights, where there is one (`ema_` columns), is a thin line, and the best point between it and
    the head (`between_` columns) a star. `baseline` is the share of the largest class
    (`largest_class_share`), which a model has to beat: a grey line; the title says where it does
    not, or, for `num_val` validation images, not clearly. A value that is not a number is a gap, a
    column that is missing an empty plot. Raises ParameterError for a history without epochs.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if history.empty:
        raise ParameterError("The history has no epochs to show. Train for one at least.")
    columns = [f"{phase}_{what}" for phase in ("train", "val") for what in ("loss", "accuracy")]
    history = history.reindex(columns=history.columns.union(columns, sort=False))
    scored = scored_weights(history)
    best = next(scored[scored["kept"]].itertuples(), None)
    found = "no accuracy is a number"
    if best:
        found = f"{best.val_accuracy:.1%}, {best.weights}".replace(" from ", "\nfrom ")
        if baseline is not None and best.val_accuracy <= baseline:
            found += ",\nno better than guessing"
        elif baseline and num_val and wilson_interval(best.val_accuracy, num_val)[0] <= baseline:
            found += ",\nhardly better than guessing"
    head, epochs = history[history["epoch"] == 0], history[history["epoch"] > 0]
    limits = history["epoch"].min() - 0.5, history["epoch"].max() + 0.5
    with style() as plt:
        figure, (left, right) = plt.subplots(2, 1, figsize=(5.6, 6.4), sharex=True)
        for ax, measure in ((left, "loss"), (right, "accuracy")):
            for phase, colour in (("train", BLUE), ("val", ORANGE)):
                column = f"{phase}_{measure}"
                ax.plot("epoch", column, "o-", data=epochs, ms=4, color=colour, label=phase)
                ax.plot(head["epoch"], head[column], "D", ms=6, color=colour)
            if (column := f"ema_val_{measure}") in history:
                label = "val, averaged weights"
                ax.plot("epoch", column, ".-", data=epochs, lw=1, color=RED, label=label)
            if (column := f"between_val_{measure}") in history:
                label = "val, between head and average"
                ax.plot("epoch", column, "*", data=epochs, ms=9, color=RED, label=label)
            for height in head[f"val_{measure}"]:
                ax.axhline(height, color=ORANGE, ls="--", lw=1, label="val, head alone")
            if best:
                ax.axvline(best.epoch, color=GREY, ls=":", lw=1.5, zorder=0)
            ax.set(xlim=limits)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if baseline is not None:
            right.axhline(baseline, color=GREY, ls="-.", lw=1.2, zorder=0)
            note = f"the largest class: {baseline:.1%}"
            place = {"xy": (1, baseline), "xycoords": ("axes fraction", "data")}
            offset: Any = {"xytext": (0, 2), "textcoords": "offset points"}
            right.annotate(note, **place, **offset, ha="right", va="bottom", fontsize=8, color=GREY)
        left.set(ylabel="loss (cross-entropy)", ylim=(0, None))
        lowest = scored["val_loss"].min()
        left.set_title(
            "No validation loss is a number"
            if np.isnan(lowest)
            else f"Lowest validation loss: {lowest:.3f}"
        )
        names = left.get_legend_handles_labels()
        figure.legend(*names, loc="outside lower center", ncols=min(len(names[0]), _IN_A_ROW))
        accuracies = history.filter(like="accuracy").to_numpy(float)
        lowest = min([1.0, *accuracies[np.isfinite(accuracies)]] + [baseline or 1.0])
        lowest = max(0, np.floor(10 * lowest - 0.5) / 10)
        right.set(xlabel="epoch", ylabel="accuracy", ylim=(lowest, 1.01))
        right.set_title(f"Best: {found}")
        right.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def plot_histories(histories: Mapping[str, pd.DataFrame], *, ax: "Axes | None" = None) -> "Axes":
    """Validation accuracy per epoch of several runs, by their names, and where each is highest.

    Epoch 0 is the head alone. Colours and marks repeat after six runs. Raises ParameterError
    without a run that has epochs.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    shown = {name: one for name, one in histories.items() if "val_accuracy" in one and len(one)}
    if not shown:
        raise ParameterError("There is no history with validation accuracies. Give one at least.")
    with drawing(ax, (5.6, 3.8)) as ax:
        highest: dict[str, float] = {}
        for (name, history), look in zip(shown.items(), cycle(_LOOKS), strict=False):
            best = scored_weights(history).query("kept")
            highest[name] = float(best["val_accuracy"].max()) if len(best) else np.nan
            label = name if np.isnan(highest[name]) else f"{name}, best {highest[name]:.1%}"
            ax.plot("epoch", "val_accuracy", data=history, lw=1.5, ms=5, label=label, **look)
            ring = {**look, "ls": "none", "label": "_best"}
            ax.plot("epoch", "val_accuracy", data=best, ms=11, mfc="none", **ring)
        ax.set(xlabel="epoch", ylabel="validation accuracy")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        first = max(highest, key=lambda name: np.nan_to_num(highest[name], nan=-1))
        ax.set_title(f"Highest: {shorten(first, _LONGEST_NAME)}")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return ax


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
