"""One look for all figures: colours that colour-blind people tell apart, quiet axes, large type."""

from collections.abc import Iterator
from contextlib import contextmanager

# Okabe and Ito, "Color Universal Design" (2008).
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6B7280"

_STYLE = {
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
}


@contextmanager
def style() -> Iterator[None]:
    """Draw within this block in the library's style; matplotlib's settings stay as they were."""
    from matplotlib import rcParams

    # Not rc_context: it would also undo what a notebook's backend sets up at the first figure.
    theirs = {name: rcParams[name] for name in _STYLE}
    rcParams.update(_STYLE)
    try:
        yield
    finally:
        rcParams.update(theirs)
