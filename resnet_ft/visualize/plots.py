"""Numbers as figures: class counts, image sizes, learning curves, confusion, one prediction."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from resnet_ft.errors import ParameterError
from resnet_ft.evaluation.predictions import Predictions
from resnet_ft.evaluation.scores import confusion_matrix
from resnet_ft.visualize.images import AnyImage, imshow
from resnet_ft.visualize.style import BLUE, GREEN, GREY, ORANGE, RED, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPLIT_COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN}
_MOST_NAMES = 100  # on an axis: more cannot be read, and take long to draw


def plot_class_counts(counts: pd.DataFrame) -> "Axes":
    """Images of each class, a bar per split, from `index.counts()`.

    Of more than 100 classes, some are named.
    """
    step, note = _named(len(counts))
    with style() as plt:
        _, ax = plt.subplots(figsize=(7, 1.2 + 0.42 * min(len(counts), _MOST_NAMES)))
        colours = [_SPLIT_COLOURS[split] for split in counts]
        counts[::-1].plot.barh(ax=ax, color=colours, width=0.8)
        few, many = counts["train"].min(), counts["train"].max()
        number = few if few == many else f"{few} to {many}"
        ax.set(xlabel="images", title=f"{len(counts)} classes, {number} training images each")
        ax.set_yticks(range(0, len(counts), step), counts.index[::-1][::step])
        ax.set_ylabel(f"class{note}" if note else "")
        ax.grid(axis="y", visible=False)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _named(num_classes: int) -> tuple[int, str]:
    """Every how many classes one is named on an axis, and a word about it."""
    step = max(1, -(-num_classes // _MOST_NAMES))
    return step, f" (one of {step} is named)" if step > 1 else ""


def plot_image_sizes(sizes: pd.DataFrame, image_size: int) -> "Axes":
    """Width and height of every image, in pixels, from columns `width` and `height`."""
    from matplotlib.ticker import LogFormatter, ScalarFormatter

    sides = sizes[["width", "height"]]
    small = (sides.min(axis=1) < image_size).sum()
    with style() as plt:
        _, ax = plt.subplots(figsize=(5.5, 4.5))
        ax.scatter(sizes["width"], sizes["height"], s=22, alpha=0.5, color=BLUE, linewidths=0)
        ax.plot([1, image_size, image_size], [image_size, image_size, 1], color=ORANGE)
        if sides.max(axis=None) > 8 * sides.min(axis=None):
            ax.set(xscale="log", yscale="log")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_formatter(ScalarFormatter())
                axis.set_minor_formatter(LogFormatter())
        smallest = min(image_size, sides.min(axis=None))
        lowest = 0 if ax.get_xscale() == "linear" else 0.7 * smallest
        ax.set(xlabel="width in pixels", ylabel="height in pixels", xlim=lowest, ylim=lowest)
        ax.set_title(f"{small} of {len(sizes)} images are smaller than {image_size} px")
    return ax


def plot_history(history: pd.DataFrame) -> "Figure":
    """Loss and accuracy per epoch, for training and validation, with the best epoch marked.

    Epoch 0, the head alone, is a diamond with a dashed line at its height; the average of the
    weights, where there is one (`ema_` columns), is a thin line. A value that is not a number is a
    gap. Raises ParameterError for a history without epochs.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if history.empty:
        raise ParameterError("The history has no epochs to show. Train for one at least.")
    averages = history.filter(like="ema_").rename(columns=lambda name: name.removeprefix("ema_"))
    averages = averages.assign(epoch=history["epoch"], averaged=True)
    scored = pd.concat([history.assign(averaged=False), averages]).sort_index(kind="stable")
    # The row whose weights are kept comes first.
    by = ["val_accuracy", "val_loss"]
    ranked = scored.sort_values(by, ascending=[False, True], kind="stable")
    best = next(ranked.dropna(subset="val_accuracy").itertuples(), None)
    found = "no accuracy is a number"
    if best:
        which = "average after " if best.averaged else "after " if best.epoch else ""
        when = f"epoch {best.epoch:.0f}" if best.epoch else "the head alone"
        found = f"{best.val_accuracy:.1%}, {which}{when}"
    head, epochs = history[history["epoch"] == 0], history[history["epoch"] > 0]
    limits = history["epoch"].min() - 0.5, history["epoch"].max() + 0.5
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
        for ax, measure in ((left, "loss"), (right, "accuracy")):
            for phase, colour in (("train", BLUE), ("val", ORANGE)):
                column = f"{phase}_{measure}"
                ax.plot("epoch", column, "o-", data=epochs, ms=4, color=colour, label=phase)
                ax.plot(head["epoch"], head[column], "D", ms=6, color=colour)
            if (column := f"ema_val_{measure}") in history:
                label = "val, averaged weights"
                ax.plot("epoch", column, ".-", data=epochs, lw=1, color=RED, label=label)
            for height in head[f"val_{measure}"]:
                ax.axhline(height, color=ORANGE, ls="--", lw=1, label="val, head alone")
            if best:
                ax.axvline(best.epoch, color=GREY, ls=":", lw=1.5, zorder=0)
            ax.set(xlabel="epoch", xlim=limits)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        left.set(ylabel="cross-entropy in nats", ylim=0)
        left.set_title(f"Lowest validation loss: {scored['val_loss'].min():.3f}")
        names = left.get_legend_handles_labels()
        figure.legend(*names, loc="outside lower center", ncols=len(names[0]))
        lowest = history.filter(like="accuracy").min(axis=None)
        right.set(ylabel="accuracy", ylim=(max(0, np.floor(10 * lowest - 0.5) / 10), 1.01))
        right.set_title(f"Best: {found}")
        right.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def plot_confusion_matrix(predictions: Predictions) -> "Axes":
    """True classes as rows, predicted ones as columns, coloured by the share of their row.

    The counts are written where there are at most 30 classes; of more than 100, some are named.
    """
    counts = confusion_matrix(predictions)
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    with style() as plt:
        side = min(2.2 + 0.5 * len(counts), 14)
        _, ax = plt.subplots(figsize=(side + 0.8, side))
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares if len(counts) <= 30 else ()):
            colour = "white" if share > 0.55 else "black" if share else GREY
            ax.text(column, row, counts.iat[row, column], ha="center", va="center", color=colour)
        small = 11 if len(counts) <= 30 else 6
        step, note = _named(len(counts))
        places, names = range(0, len(counts), step), counts.index[::step]
        ax.set_xticks(places, names, rotation=45, ha="right", fontsize=small)
        ax.set_yticks(places, names, fontsize=small)
        ax.set(xlabel=f"predicted{note}", ylabel=f"true{note}")
        ax.grid(visible=False)
        ax.set_title(f"{predictions.accuracy:.1%} of {len(predictions.table)} images are correct")
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
        right.bar_label(bars, [f"{share:.1%}" for share in rows["probability"]], padding=4)
        right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right.set(xlim=(0, 1.15), xticks=(0, 0.5, 1), xlabel="probability")
        right.grid(axis="y", visible=False)
        best = prediction.iloc[0]
        right.set_title(f"{best['class_name']}, with {best['probability']:.0%} probability")
    return figure
