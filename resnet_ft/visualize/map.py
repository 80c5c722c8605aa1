"""A map of a data set: where its images lie to the network."""

import base64
from collections.abc import Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from resnet_ft.evaluation.attention import features_of
from resnet_ft.evaluation.predictions import Predictions, check_paths
from resnet_ft.notebook import NO_FORMULAS, Html, percent, shorten
from resnet_ft.visualize.images import jpeg_thumbnail
from resnet_ft.visualize.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOOKS = dict(zip("os^DvP", (BLUE, ORANGE, GREEN, RED, PURPLE, SKY), strict=True))
_LOOKS |= {"p": "#F0E442", "h": "black"}  # of more classes, the others are grey


def plot_map(predictions: Mapping[str, Predictions], *, ax: "Axes | None" = None) -> "Axes":
    """Every image as a point: the closer two are, the more alike they look to the network.

    `predictions` are {"train": ..., "val": ...}, or one of them, by evaluate(..., features=True).
    The plot shows the two directions of most variance of the features (PCA). Of more than eight
    classes, those with most mistakes are named. Raises ParameterError without features.
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


def _draw(points: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    mistakes = points.groupby("label")["wrong"].sum()
    shown = sorted(mistakes.nlargest(len(_LOOKS)).index)
    looks = {"": (".", GREY), **dict(zip(shown, _LOOKS.items(), strict=False))}
    with drawing(ax, (6.5, 4.8)) as axes:
        for name, some in points.groupby(points["label"].where(points["label"].isin(shown), "")):
            (marker, colour), label = looks[name], shorten(name, 22) or None
            sizes = np.where(some["split"] == "train", 12, 45)
            axes.scatter(
                "x", "y", sizes, colour, marker=marker, data=some, alpha=0.6, lw=0, label=label
            )
        wrong = points[points["wrong"]]
        axes.scatter("x", "y", 60, "black", marker="x", data=wrong, lw=1.5, label="wrong")
        first, second = points.attrs["axes"]
        axes.set(xlabel=first, ylabel=second, xticks=[], yticks=[])
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
    import matplotlib.pyplot as plt

    points, file = check_paths(_points(predictions)), BytesIO()
    ax = _draw(points)
    figure: Any = ax.figure
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
        texts = (f"<tspan x='{width}' dy='24'>{line}</tspan>" for line in lines)
        spots += f"<text y='200'>{''.join(texts)}</text></g>"
    return Html(
        f"<style>{_CSS}</style><svg class='resnet-ft-map {NO_FORMULAS}' role='group' "
        f"viewBox='0 0 {width + 200} {height}' aria-label='Map of {len(points)} images'>"
        f"<image width='{width}' height='{height}' href='{_data(file.getvalue(), 'png')}'/>"
        f"<text x='{width}' y='{height - 30}'>Point at an image.</text>{spots}</svg>",
        f"A map of {len(points)} images, which a notebook shows.",
    )


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
