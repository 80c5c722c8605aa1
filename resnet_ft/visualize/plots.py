"""Numbers as figures: class counts, image sizes, learning curves, confusion, one prediction."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from resnet_ft.errors import ParameterError
from resnet_ft.evaluation.predictions import Predictions
from resnet_ft.evaluation.scores import (
    class_scores,
    confusion_matrix,
    scored_weights,
    wilson_interval,
)
from resnet_ft.notebook import percent
from resnet_ft.visualize.images import AnyImage, imshow
from resnet_ft.visualize.style import BLUE, GREEN, GREY, ORANGE, RED, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPLIT_COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN}
_MOST_NAMES = 100  # on an axis: more cannot be read, and take long to draw
_IN_A_ROW = 3  # entries of a legend below two plots


def plot_class_counts(counts: pd.DataFrame) -> "Axes":
    """Images of each class, a bar per split, from `index.counts()`.

    Of more than 100 classes, some are named.
    """
    step, note = _named(len(counts))
    with style() as plt:
        _, ax = plt.subplots(figsize=(7, 1.2 + 0.42 * min(len(counts), _MOST_NAMES)))
        colours = [_SPLIT_COLOURS[split] for split in counts][::-1]
        counts.iloc[::-1, ::-1].plot.barh(ax=ax, color=colours, width=0.8)  # drawn from below
        few, many = counts["train"].min(), counts["train"].max()
        number = few if few == many else f"{few} to {many}"
        ax.set(xlabel="images", title=f"{len(counts)} classes, {number} training images each")
        ax.set_yticks(range(0, len(counts), step), counts.index[::-1][::step])
        ax.set_ylabel(f"class{note}" if note else "")
        ax.grid(axis="y", visible=False)
        bars, splits = ax.get_legend_handles_labels()
        ax.legend(bars[::-1], splits[::-1], loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _named(num_classes: int) -> tuple[int, str]:
    """Every how many classes one is named on an axis, and a word about it."""
    step = max(1, -(-num_classes // _MOST_NAMES))
    return step, f" (one of {step} is named)" if step > 1 else ""


def plot_image_sizes(sizes: pd.DataFrame, image_size: int) -> "Axes":
    """Width and height of every image, in pixels, from columns `width` and `height`.

    The line marks `image_size`: images to the left of it or below it are enlarged for the model.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    sides = sizes[["width", "height"]]
    small = (sides.min(axis=1) < image_size).sum()
    with style() as plt:
        _, ax = plt.subplots(figsize=(5.5, 4.5))
        ax.scatter(sizes["width"], sizes["height"], s=22, alpha=0.5, color=BLUE, linewidths=0)
        line = [1, image_size, image_size], [image_size, image_size, 1]
        ax.plot(*line, color=ORANGE, label=f"{image_size} pixels")
        if sides.max(axis=None) > 8 * sides.min(axis=None):
            ax.set(xscale="log", yscale="log")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
                axis.set_minor_formatter(NullFormatter())
        smallest = min(image_size, sides.min(axis=None))
        lowest = 0 if ax.get_xscale() == "linear" else 0.7 * smallest
        ax.set(xlabel="width in pixels", ylabel="height in pixels", xlim=lowest, ylim=lowest)
        ax.set_title(f"{small} of {len(sizes)} images are smaller than the line")
        ax.legend(loc="lower right")
    return ax


def plot_history(
    history: pd.DataFrame, *, baseline: float | None = None, num_val: int | None = None
) -> "Figure":
    """Loss and accuracy per epoch, for training and validation, with the best epoch marked.

    Epoch 0, the head alone, is a diamond with a dashed line at its height; the average of the
    weights, where there is one (`ema_` columns), is a thin line, and the best point between it and
    the head (`between_` columns) a star. `baseline` is the share of the largest class
    (`largest_class_share`), which a model has to beat: a grey line; the title says where it does
    not, or, for `num_val` validation images, not clearly. A value that is not a number is a gap.
    Raises ParameterError for a history without epochs.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if history.empty:
        raise ParameterError("The history has no epochs to show. Train for one at least.")
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
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6))
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
            ax.set(xlabel="epoch", xlim=limits)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if baseline is not None:
            right.axhline(baseline, color=GREY, ls="-.", lw=1.2, zorder=0)
            note = f"the largest class: {baseline:.1%}"
            place = {"xy": (1, baseline), "xycoords": ("axes fraction", "data")}
            offset: Any = {"xytext": (0, 2), "textcoords": "offset points"}
            right.annotate(note, **place, **offset, ha="right", va="bottom", fontsize=8, color=GREY)
        left.set(ylabel="loss (cross-entropy)", ylim=0)
        left.set_title(f"Lowest validation loss: {scored['val_loss'].min():.3f}")
        names = left.get_legend_handles_labels()
        figure.legend(*names, loc="outside lower center", ncols=min(len(names[0]), _IN_A_ROW))
        lowest = history.filter(like="accuracy").min(axis=None)
        lowest = np.nanmin([lowest, np.nan if baseline is None else baseline])
        right.set(ylabel="accuracy", ylim=(max(0, np.floor(10 * lowest - 0.5) / 10), 1.01))
        right.set_title(f"Best: {found}")
        right.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def plot_confusion_matrix(predictions: Predictions, *, split: str = "") -> "Axes":
    """True classes as rows, predicted ones as columns, coloured by the share of their row.

    Counts are written where there are at most 30 classes, with the percentage of their row where
    there are at most 15; of more than 100, some are named. `split` is a word for the title.
    """
    counts = confusion_matrix(predictions)
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    with style() as plt:
        side = min(2.2 + (0.6 if len(counts) <= 15 else 0.5) * len(counts), 14)
        _, ax = plt.subplots(figsize=(side + 0.8, side))
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares if len(counts) <= 30 else ()):
            colour = "white" if share > 0.55 else "black" if share else GREY
            text = str(counts.iat[row, column])
            if share and len(counts) <= 15:
                text += f"\n{share:.0%}"
            ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        small = 11 if len(counts) <= 30 else 6
        step, note = _named(len(counts))
        places, names = range(0, len(counts), step), counts.index[::step]
        ax.set_xticks(places, names, rotation=45, ha="right", fontsize=small)
        ax.set_yticks(places, names, fontsize=small)
        ax.set(xlabel=f"predicted{note}", ylabel=f"true{note}")
        ax.grid(visible=False)
        # In two lines where it is longer: a matrix of few classes is narrow.
        images = f" {split} images\n" if split else " images "
        number = f"{len(predictions.table)}{images}"
        ax.set_title(f"{predictions.accuracy:.1%} of {number}are correct")
    return ax


def plot_class_scores(predictions: Predictions) -> "Axes":
    """Precision and recall of each class (see `class_scores`), the class with the lowest F1 on top.

    A line joins the two: where precision is lower, other classes are taken for this one; where
    recall is lower, this one is taken for others. Of more than 100 classes, some are named.
    """
    from matplotlib.ticker import PercentFormatter

    scores = class_scores(predictions).iloc[:-1].sort_values("f1", ascending=False, kind="stable")
    step, note = _named(len(scores))
    rows = np.arange(len(scores))
    with style() as plt:
        _, ax = plt.subplots(figsize=(6.5, 1.4 + 0.32 * min(len(scores), _MOST_NAMES)))
        ax.hlines(rows, scores["precision"], scores["recall"], color=GREY, lw=1.5)
        for measure, colour, marker in (("precision", BLUE, "o"), ("recall", ORANGE, "D")):
            ax.plot(scores[measure], rows, marker, color=colour, label=measure, clip_on=False)
        ax.set_yticks(rows[::step], scores.index[::step])
        ax.set(xlim=(0, 1), ylim=(-0.6, len(scores) - 0.4), ylabel=f"class{note}" if note else "")
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(axis="y", visible=False)
        ax.set_title(f"Lowest: {scores.index[-1]}, with an F1 of {scores['f1'].iloc[-1]:.1%}")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def plot_prediction(image: AnyImage, prediction: pd.DataFrame) -> "Figure":
    """An image beside its most probable classes, from `Predictor.predict`."""
    from matplotlib.ticker import PercentFormatter

    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), width_ratios=(1, 1.3))
        imshow(image, ax=left)
        rows = prediction[::-1]
        places = range(len(rows))
        bars = right.barh(places, rows["probability"], color=GREY, tick_label=rows["class_name"])
        bars[-1].set_color(BLUE)
        right.bar_label(bars, [percent(share) for share in rows["probability"]], padding=4)
        right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right.set(xlim=(0, 1.15), xticks=(0, 0.5, 1), xlabel="probability")
        right.grid(axis="y", visible=False)
        best = prediction.iloc[0]
        right.set_title(f"{best['class_name']}, with {percent(best['probability'])} probability")
    return figure
