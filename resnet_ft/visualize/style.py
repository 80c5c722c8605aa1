"""One look for all figures: colours that colour-blind people can distinguish, large type."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, "Color Universal Design" (2008).
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6B7280"
SKY, PURPLE = "#56B4E9", "#CC79A7"

_STYLE: dict[Any, object] = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E7EB",
    "axes.edgecolor": "#9CA3AF",
    "lines.linewidth": 2.2,
    "legend.frameon": False,
    "savefig.bbox": "tight",
    # Names are shown as they are written: "$5 $6" and "a_b^c" are no formulas. A text keeps what
    # holds when it is made, so this lasts when the figure is drawn or saved later; the labels of a
    # categorical axis are made when it is drawn, so names on an axis are set as its tick labels.
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
}


@contextmanager
def style() -> Iterator[ModuleType]:
    """Yield `matplotlib.pyplot`, to draw in the library's style; its settings do not change."""
    import matplotlib.pyplot as plt

    # Not rc_context: it would also undo what a notebook's backend sets up at the first figure.
    theirs = {name: plt.rcParams[name] for name in _STYLE}
    plt.rcParams.update(_STYLE)
    try:
        yield plt
    finally:
        plt.rcParams.update(theirs)


@contextmanager
def drawing(ax: "Axes | None", figsize: tuple[float, float]) -> "Iterator[Axes]":
    """Axes to draw into in the library's style: the given ones, or those of a new figure."""
    from matplotlib.text import Text

    with style() as plt:
        axes: Axes = plt.subplots(figsize=figsize)[1] if ax is None else ax
        yield axes
        for text in axes.findobj(Text) if ax else ():  # made outside of `style`
            text.set_parse_math(False)
