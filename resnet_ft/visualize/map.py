"""A map of a data set: where its images lie to the network."""

import base64
from collections.abc import Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from resnet_ft.evaluation.attention import features_of
from resnet_ft.evaluation.predictions import Predictions, check_paths
from resnet_ft.notebook import NO_FORMULAS, Html, percent, shorten
from resnet_ft.visualize.images import jpeg_thumbnail
from resnet_ft.visualize.style import BLUE, GREEN, GREY, ORANGE, RED, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (BLUE, ORANGE, GREEN, RED, "#56B4E9", "#CC79A7", "#F0E442", "black")
_SHAPES = "os^DvPph"  # as many


def plot_map(predictions: Mapping[str, Predictions], *, ax: "Axes | None" = None) -> "Axes":
    """Every image as a point: the closer two are, the more alike they look to the network.

    `predictions` are those of splits, {"train": ..., "val": ...}, by evaluate(..., features=True),
    of whose features the plot shows the two directions of most variance (PCA). Shape and colour are
    those of the label; of more than eight, those of most mistakes, the others are grey. Training
    images are small, mistakes crossed. Raises ParameterError without features of one model.
    """
    return _draw(_points(predictions), ax)


def _points(predictions: Mapping[str, Predictions]) -> pd.DataFrame:
    """The rows of all tables, with the `split`, whether it is `wrong`, and a place `x`, `y`."""
    pca = PCA(2, random_state=0)
    x, y = pca.fit_transform(np.concatenate(features_of([*predictions.values()]))).T
    tables = [one.table.assign(split=split) for split, one in predictions.items()]
    points = pd.concat(tables, ignore_index=True).assign(x=x, y=y)
    shares = pca.explained_variance_ratio_
    points.attrs["axes"] = [f"{share:.0%} of the variance" for share in shares]
    return points.assign(wrong=points["predicted"] != points["label"])


def _draw(points: pd.DataFrame, ax: "Axes | None") -> "Axes":
    mistakes = points.groupby("label")["wrong"].sum()
    shown = sorted(mistakes.nlargest(len(_COLOURS)).index)
    looks = dict(zip(shown, zip(_COLOURS, _SHAPES, strict=True), strict=False))
    with style() as plt:
        axes: Axes = ax or plt.subplots(figsize=(6.5, 4.8))[1]
        for name in [*sorted(mistakes.index.difference(shown)), *shown]:
            some, (colour, shape) = points[points["label"] == name], looks.get(name, (GREY, "."))
            sizes = np.where(some["split"] == "train", 12, 45)
            label = name if name in looks else None
            axes.scatter(
                "x", "y", sizes, colour, marker=shape, data=some, alpha=0.6, lw=0, label=label
            )
        wrong = points[points["wrong"]]
        axes.scatter("x", "y", 60, "black", marker="x", data=wrong, lw=1.5, label="wrong")
        axes.set(xticks=[], yticks=[])
        axes.set(**dict(zip(("xlabel", "ylabel"), points.attrs["axes"], strict=True)))
        small = "\nThe small ones are training images" if {"train"} < {*points["split"]} else ""
        axes.set_title(f"{len(wrong)} of {len(points)} images are wrong (crossed){small}")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return axes


_CSS = """
.resnet-ft-map {width: 100%; max-width: 940px; background: white; font: 18px sans-serif}
.resnet-ft-map g {outline: none} .resnet-ft-map g > :not(circle) {pointer-events: none}
.resnet-ft-map g:not(:hover, :focus) > :not(circle) {visibility: hidden}
.resnet-ft-map g:is(:hover, :focus) circle {stroke: black; stroke-width: 2}
"""


def explore_map(predictions: Mapping[str, Predictions], *, num_images: int = 200) -> Html:
    """`plot_map` as HTML: a point under the pointer, or reached with Tab, shows its image and name.

    `num_images` points do, mistakes first, for some 5 kB each. It needs neither kernel nor script.
    """
    points = check_paths(_points(predictions))
    with style() as plt:
        figure, ax = plt.subplots(figsize=(6.5, 4.8))
        _draw(points, ax)
    file = BytesIO()
    figure.savefig(file, format="png", bbox_inches=figure.bbox_inches)
    plt.close(figure)
    width, height = figure.canvas.get_width_height()
    points[["left", "bottom"]] = ax.transData.transform(points[["x", "y"]])
    order = points.sample(frac=1, random_state=0).sort_values("wrong", kind="stable")
    spots = ""
    for row in order.tail(num_images).itertuples():
        mark = "✗" if row.wrong else "✓"
        said = Path(row.path).name, f"{row.split}: {row.label}", f"{mark} {row.predicted}"
        lines = [escape(shorten(one, 22)) for one in (*said, percent(row.confidence))]
        picture = _data(jpeg_thumbnail(Path(row.path), (128, 128)), "jpeg")
        spots += (
            f"<g tabindex='0' role='img' aria-label='{', '.join(lines)}'>"
            f"<circle cx='{row.left:.0f}' cy='{height - row.bottom:.0f}' r='7' fill='transparent'/>"
            f"<image x='{width}' y='10' width='190' height='190' href='{picture}'/>"
        )
        for i, line in enumerate(lines):
            spots += f"<text x='{width}' y='{225 + 24 * i}'>{line}</text>"
        spots += "</g>"
    return Html(
        f"<style>{_CSS}</style><svg class='resnet-ft-map {NO_FORMULAS}' role='group' "
        f"viewBox='0 0 {width + 200} {height}' aria-label='Map of {len(points)} images'>"
        f"<image width='{width}' height='{height}' href='{_data(file.getvalue(), 'png')}'/>"
        f"<text x='{width}' y='{height - 30}'>Point at an image.</text>{spots}</svg>",
        f"A map of {len(points)} images, which a notebook shows.",
    )


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
