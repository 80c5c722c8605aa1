"""Numbers as figures: class counts, image sizes, confusion, scores of classes.

A function that draws one plot takes `ax=`, axes to draw it into.
"""

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from resnet_ft.data.images import open_resized
from resnet_ft.errors import ImageError
from resnet_ft.evaluation.predictions import Predictions
from resnet_ft.evaluation.scores import (
    class_scores,
    confused_pairs,
    confusion_matrix,
    wilson_interval,
)
from resnet_ft.notebook import shorten
from resnet_ft.visualize.images import imshow
from resnet_ft.visualize.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    drawing,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPLIT_COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN}
_MOST_NAMES = 100  # on an axis: more cannot be read, and take long to draw
_MOST_IN_MATRIX = 40  # classes with numbers
_NAMES_BESIDE = 50  # a matrix without
_LONGEST_NAME = 24
_EXAMPLES = 3  # images of a pair of classes


def plot_class_counts(counts: pd.DataFrame, *, ax: "Axes | None" = None) -> "Axes":
    """Images of each class, a bar per split, from `index.counts()`.

    Of more than 100 classes, some are named.
    """
    step, note = _named(len(counts))
    with drawing(ax, (7, 1.2 + 0.42 * min(len(counts), _MOST_NAMES))) as ax:
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


def plot_image_sizes(sizes: pd.DataFrame, image_size: int, *, ax: "Axes | None" = None) -> "Axes":
    """Width and height of every image, in pixels, from columns `width` and `height`.

    The line marks `image_size`: images to the left of it or below it are enlarged for the model.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    sides = sizes[["width", "height"]]
    small = (sides.min(axis=1) < image_size).sum()
    with drawing(ax, (5.5, 4.5)) as ax:
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


def plot_confusion_matrix(
    predictions: Predictions, *, split: str = "", ax: "Axes | None" = None
) -> "Axes":
    """True classes as rows, predicted ones as columns, coloured by the share of their row.

    Counts are written, with the percentage of their row where there are at most 15 classes. Of more
    than 40 there are colours alone, and classes that are confused with each other stand side by
    side (average linkage of how often they are): see `plot_confused_pairs` for names and numbers.
    `split` is a word for the title.
    """
    counts = confusion_matrix(predictions)
    many = len(counts) > _MOST_IN_MATRIX
    if many:
        order = _confused_side_by_side(counts.to_numpy())
        counts = counts.iloc[order, order]
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    side = 6.0 if many else 1.8 + (0.5 if len(counts) <= 15 else 0.32) * len(counts)
    with drawing(ax, (max(4.0, side + 0.8), side)) as ax:
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        for (row, column), share in np.ndenumerate(shares if not many else ()):
            colour = "white" if share > 0.55 else "black" if share else GREY
            text = str(counts.iat[row, column])
            if share and len(counts) <= 15:
                text += f"\n{share:.0%}"
            ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        step = -(-len(counts) // _NAMES_BESIDE) if many else 1
        note = f" (one of {step} is named)" if step > 1 else ""
        places, names = range(0, len(counts), step), counts.index[::step]
        short = [shorten(name, _LONGEST_NAME) for name in names]
        small = 6 if many else 10 if len(counts) <= 15 else 8
        ax.set_xticks(
            places,
            short,
            rotation=90 if many else 45,
            ha="center" if many else "right",
            fontsize=small,
        )
        ax.set_yticks(places, short, fontsize=small)
        ax.set(xlabel=f"predicted{note}", ylabel=f"true{note}")
        ax.grid(visible=False)
        # In two lines where it is longer: a matrix of few classes is narrow.
        images = f" {split} images\n" if split else " images "
        number = f"{len(predictions.table):,}{images}"
        ax.set_title(f"{predictions.accuracy:.1%} of {number}are correct")
    return ax


def _confused_side_by_side(counts: np.ndarray) -> list[int]:
    """An order in which classes that are confused with each other, by their (C, C), are close."""
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    distance = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distance, 0)
    return [
        int(label) for label in leaves_list(linkage(squareform(distance, checks=False), "average"))
    ]


def plot_confused_pairs(
    predictions: Predictions, *, num_pairs: int = 10, ax: "Axes | None" = None
) -> "Figure":
    """The classes that are confused most often: a bar for each pair, and images beside it.

    A bar is how many images of the first class are taken for the second. The images, up to three,
    are the most confident of them; there are none where paths are unknown or `ax` is given.
    """
    pairs = confused_pairs(predictions).head(num_pairs)
    table = predictions.table
    wrong = table[table["label"] != table["predicted"]].sort_values("confidence", ascending=False)
    found: dict[Any, list[str]] = {}
    if ax is None:
        for pair, rows in wrong.groupby(["label", "predicted"]):
            found[pair] = list(rows["path"].dropna()[:_EXAMPLES])
    keys = list(zip(pairs["label"], pairs["predicted"], strict=True))
    height = 0.9 + 0.62 * max(1, len(pairs))
    with style() as plt, ExitStack() as stack:
        figure: Any
        if pictures := any(found.get(key) for key in keys):
            figure = plt.figure(figsize=(6.4, height))
            grid = figure.add_gridspec(
                len(pairs), 1 + _EXAMPLES, width_ratios=[4, *[1] * _EXAMPLES]
            )
            ax = figure.add_subplot(grid[:, 0])
        ax = stack.enter_context(drawing(ax, (5.6, height)))
        figure = ax.figure
        rows = np.arange(len(pairs))[::-1]
        bars = ax.barh(rows, pairs["images"], height=0.36, color=ORANGE)
        ax.bar_label(
            bars,
            [f"{n} of {of}" for n, of in zip(pairs["images"], pairs["of"], strict=True)],
            padding=3,
        )
        for row, (label, predicted) in zip(rows, keys, strict=True):
            names = [shorten(name, _LONGEST_NAME) for name in (label, predicted)]
            ax.text(0, row + 0.22, f"{names[0]} taken for {names[1]}", va="bottom", fontsize=9)
        ax.set(
            yticks=[],
            xticks=[],
            ylim=(-0.5, len(pairs) - 0.3),
            xlim=(0, 1.35 * pairs["images"].max() if len(pairs) else 1),
        )
        ax.grid(visible=False)
        for spine in ax.spines.values():
            spine.set_visible(False)
        of = (
            f"{pairs['images'].sum():,} of {len(wrong):,} mistakes" if len(pairs) else "No mistakes"
        )
        ax.set_title(of)
        if pictures:
            for row, key in enumerate(keys):
                for column in range(_EXAMPLES):
                    cell = figure.add_subplot(grid[row, 1 + column])
                    cell.axis("off")
                    with suppress(ImageError, IndexError):
                        imshow(open_resized(found[key][column], 100), ax=cell)
    return figure


def plot_class_scores(predictions: Predictions, *, ax: "Axes | None" = None) -> "Axes":
    """Precision and recall of each class, with what so few images leave open; the worst on top.

    The worst is the lowest F1 (see `class_scores`). Lines are Wilson's intervals at 95% confidence.
    Where precision is lower, other classes are taken for this one; where recall is lower, this one
    is taken for others. Of more than 40 classes, the 40 worst are shown.
    """
    from matplotlib.ticker import PercentFormatter

    scores = class_scores(predictions).iloc[:-1].sort_values("f1", kind="stable")
    counts = predictions.table["predicted"].value_counts()
    scores = scores.assign(called=counts.reindex(scores.index, fill_value=0))
    shown = scores.head(_MOST_IN_MATRIX)[::-1]
    rows = np.arange(len(shown))
    with drawing(ax, (5.8, 1.5 + 0.34 * len(shown))) as ax:
        for measure, of, colour, marker, shift in (
            ("precision", "called", BLUE, "o", 0.16),
            ("recall", "images", ORANGE, "D", -0.16),
        ):
            for row, (share, count) in zip(rows, shown[[measure, of]].to_numpy(), strict=True):
                if count:
                    ax.hlines(
                        row + shift, *wilson_interval(share, int(count)), color=colour, lw=1.5
                    )
            ax.plot(
                shown[measure],
                rows + shift,
                marker,
                ms=5,
                color=colour,
                label=measure,
                clip_on=False,
            )
        ax.set_yticks(rows, [shorten(str(name), _LONGEST_NAME) for name in shown.index])
        ax.set(xlim=(0, 1), ylim=(-0.6, len(shown) - 0.4))
        if len(shown) < len(scores):
            ax.set_ylabel(f"the {len(shown)} lowest of {len(scores):,} classes")
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(axis="y", visible=False)
        ax.set_title(f"Lowest: {scores.index[0]}, with an F1 of {scores['f1'].iloc[0]:.1%}")
        ax.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.35 / (0.5 + 0.34 * len(shown))), ncols=2
        )
    return ax
