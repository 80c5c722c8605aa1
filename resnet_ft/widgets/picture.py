"""A matplotlib figure as an ipywidget: the same in Jupyter, Colab and a saved notebook."""

from io import BytesIO
from typing import TYPE_CHECKING

import ipywidgets

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def to_png(figure: "Figure") -> bytes:
    """The figure as a PNG file; the figure is closed, so that no notebook shows it once more."""
    import matplotlib.pyplot as plt

    file = BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return file.getvalue()


def picture(figure: "Figure") -> ipywidgets.Image:
    """A widget that shows the figure."""
    return ipywidgets.Image(value=to_png(figure), format="png", layout={"max_width": "100%"})


def to_jpeg(image: "Image") -> bytes:
    """A PIL image as a JPEG file."""
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
