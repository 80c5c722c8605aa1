"""A matplotlib figure as an ipywidget: the same in Jupyter, Colab and a saved notebook."""

from io import BytesIO

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


class FigureWidget(ipywidgets.Image):
    """A widget that shows a figure; `draw` replaces it."""

    def __init__(self, figure: Figure):
        # A box would stretch a figure of one image to its own width.
        layout = {"max_width": "100%", "align_self": "flex-start"}
        super().__init__(format="png", layout=layout)
        self.draw(figure)

    def draw(self, figure: Figure) -> None:
        """Show this figure, and close it, so that no notebook shows it a second time."""
        file = BytesIO()
        figure.savefig(file, format="png")
        plt.close(figure)
        self.value = file.getvalue()
