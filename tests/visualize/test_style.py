"""Names as people type them, on axes, in legends and in titles: shown as they are written."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from resnet_ft import (
    LRFinder,
    Predictions,
    imshow,
    plot_class_counts,
    plot_confusion_matrix,
    plot_image_sizes,
    show_images,
)
from resnet_ft.visualize.style import style

NAMES = [r"$\frac$", "$5 $6", "_cat", "a_b^c"]
IMAGE = Image.new("RGB", (20, 10))


def shown(figure) -> set[str]:
    """The texts of a figure that is drawn after the library's settings have ended."""
    assert plt.rcParams["text.parse_math"]
    figure.savefig(io.BytesIO(), format="png")
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    formulas = [text.get_text() for text in texts if text.get_parse_math() and "$" in str(text)]
    assert not formulas
    return {text.get_text() for text in texts}


def class_counts():
    counts = pd.DataFrame({"train": [4, 3, 2, 1], "val": [1, 1, 1, 1]}, index=NAMES)
    return plot_class_counts(counts).figure


def confusion_matrix():
    table = pd.DataFrame({"label": NAMES, "predicted": NAMES})
    return plot_confusion_matrix(Predictions(table, np.zeros((4, 4)), NAMES)).figure


def titles():
    return show_images([IMAGE] * 4, NAMES, title=NAMES[0])


def legend():
    with style():
        _, ax = plt.subplots()
        ax.legend([ax.plot([1, 2])[0] for _ in NAMES], NAMES)
    return ax.figure


@pytest.mark.parametrize(
    "figure", [class_counts, confusion_matrix, titles, legend], ids=lambda f: f.__name__
)
def test_names_are_shown_as_they_are_written(figure):
    assert set(NAMES) <= shown(figure())


def test_a_title_on_axes_of_ones_own_is_shown_as_it_is_written():
    figure, ax = plt.subplots()
    imshow(IMAGE, ", ".join(NAMES), ax=ax)
    assert ", ".join(NAMES) in shown(figure)


def test_a_file_name_that_is_no_unicode_can_be_a_title():
    assert {"caf?.jpg", "caf?"} <= shown(show_images([IMAGE], ["caf\udce9.jpg"], title="caf\udce9"))


def test_logarithmic_axes_have_plain_numbers():
    sizes = pd.DataFrame({"width": [100, 850], "height": [100, 300]})
    assert {"100", "200"} <= shown(plot_image_sizes(sizes, 64).figure)
    rates = np.geomspace(1e-6, 1, 50)
    found = pd.DataFrame({"learning_rate": rates, "loss": 1 - rates, "smoothed": 1 - rates})
    assert "1e\N{MINUS SIGN}04" in shown(LRFinder(found).plot().figure)


def test_what_a_user_asks_of_latex_does_not_reach_names(monkeypatch):
    monkeypatch.setitem(plt.rcParams, "text.usetex", True)
    assert not any(text.get_usetex() for text in class_counts().findobj(Text) if text.get_text())
