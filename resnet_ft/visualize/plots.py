"""Numbers as pictures: class counts, image sizes, learning curves, confusion, one prediction."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from resnet_ft.evaluation.predictions import Predictions
from resnet_ft.evaluation.scores import confusion_matrix
from resnet_ft.visualize.images import AnyImage, imshow
from resnet_ft.visualize.style import BLUE, GREEN, GREY, ORANGE, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPLIT_COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN}


def plot_class_counts(counts: pd.DataFrame) -> "Axes":
    """Images of each class, a bar a split, from `index.counts()`."""
    import matplotlib.pyplot as plt

    with style():
        _, ax = plt.subplots(figsize=(7, 1.2 + 0.42 * len(counts)))
        colours = [_SPLIT_COLOURS[split] for split in counts]
        counts[::-1].plot.barh(ax=ax, color=colours, width=0.8)
        ax.set(xlabel="images", title=_count_title(counts))
        ax.grid(axis="y", visible=False)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _count_title(counts: pd.DataFrame) -> str:
    train = counts["train"]
    if train.min() == train.max():
        return f"{len(counts)} classes of {train.min()} training images each"
    return f"{len(counts)} classes of {train.min()} to {train.max()} training images"


def plot_image_sizes(sizes: pd.DataFrame, image_size: int) -> "Axes":
    """Width and height of every image, in pixels, from columns `width` and `height`."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    sides = sizes[["width", "height"]]
    small = (sides.min(axis=1) < image_size).sum()
    with style():
        _, ax = plt.subplots(figsize=(5.5, 4.5))
        ax.scatter(sizes["width"], sizes["height"], s=22, alpha=0.5, color=BLUE, linewidths=0)
        ax.plot([1, image_size, image_size], [image_size, image_size, 1], color=ORANGE)
        if sides.max(axis=None) > 8 * sides.min(axis=None):
            ax.set(xscale="log", yscale="log")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_formatter(ScalarFormatter())
        smallest = min(image_size, sides.min(axis=None))
        lowest = 0 if ax.get_xscale() == "linear" else 0.7 * smallest
        ax.set(xlabel="width in pixels", ylabel="height in pixels", xlim=lowest, ylim=lowest)
        ax.set_title(f"{small} of {len(sizes)} images are smaller than {image_size} px")
    return ax


def plot_history(history: pd.DataFrame) -> "Figure":
    """Loss and accuracy by epoch, for training and validation, with the best epoch marked."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    best = history.loc[_best_epoch(history)]
    lowest = history.loc[history["val_loss"].idxmin()]
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
        _plot_curves(left, history, "loss", best["epoch"])
        _plot_curves(right, history, "accuracy", best["epoch"])
        left.set(ylabel="cross-entropy in nats", ylim=0)
        left.set_title(f"Lowest validation loss: {lowest['val_loss']:.3f}")
        left.legend()
        right.set(ylabel="accuracy", ylim=(0, 1.03))
        right.set_title(f"Best: {best['val_accuracy']:.1%} after epoch {best['epoch']:.0f}")
        right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def _plot_curves(ax: "Axes", history: pd.DataFrame, measure: str, best: float) -> None:
    from matplotlib.ticker import MaxNLocator

    for phase, colour in (("train", BLUE), ("val", ORANGE)):
        values = history[f"{phase}_{measure}"]
        ax.plot(history["epoch"], values, "o-", markersize=4, color=colour, label=phase)
    ax.axvline(best, color=GREY, linestyle=":", linewidth=1.5, zorder=0)
    ax.set(xlabel="epoch", xlim=(0.5, history["epoch"].max() + 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _best_epoch(history: pd.DataFrame) -> int:
    """The row whose weights are kept: highest validation accuracy, ties by lower loss."""
    order = history.sort_values(
        ["val_accuracy", "val_loss"], ascending=[False, True], kind="stable"
    )
    return order.index[0]


def plot_confusion_matrix(predictions: Predictions) -> "Axes":
    """True classes as rows, predicted ones as columns, coloured by the share of the row."""
    import matplotlib.pyplot as plt

    counts = confusion_matrix(predictions)
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    with style():
        side = min(2.2 + 0.5 * len(counts), 14)
        _, ax = plt.subplots(figsize=(side + 0.8, side))
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares if len(counts) <= 30 else ()):
            colour = "white" if share > 0.55 else "black" if share else GREY
            ax.text(column, row, counts.iat[row, column], ha="center", va="center", color=colour)
        small = 11 if len(counts) <= 30 else 6
        ax.set_xticks(range(len(counts)), counts.columns, rotation=45, ha="right", fontsize=small)
        ax.set_yticks(range(len(counts)), counts.index, fontsize=small)
        ax.set(xlabel="predicted", ylabel="true")
        ax.grid(visible=False)
        ax.set_title(f"{predictions.accuracy:.1%} of {len(predictions.table)} images are right")
    return ax


def plot_prediction(image: AnyImage, prediction: pd.DataFrame) -> "Figure":
    """An image beside its most probable classes, from `Predictor.predict`."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), width_ratios=(1, 1.3))
        imshow(image, ax=left)
        rows = prediction[::-1]
        bars = right.barh(rows["class_name"], rows["probability"], color=GREY)
        bars[-1].set_color(BLUE)
        right.bar_label(bars, [f"{share:.1%}" for share in rows["probability"]], padding=4)
        right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right.set(xlim=(0, 1.15), xticks=(0, 0.5, 1), xlabel="probability")
        right.grid(axis="y", visible=False)
        best = prediction.iloc[0]
        right.set_title(f"{best['class_name']}, with {best['probability']:.0%} probability")
    return figure
