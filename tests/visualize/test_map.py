import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import write_image
from matplotlib.colors import to_rgb

from resnet_ft import ParameterError, Predictions, explore_map, plot_map
from resnet_ft.visualize.style import GREY

NAMES = ["a", "$b$", "<img onerror=alert(1)>"]


def predictions(folder, labels, predicted, features):
    paths = [str(write_image(folder / f"<b>{i}.png")) for i in range(len(labels))]
    table = pd.DataFrame({"path": paths, "label": labels, "predicted": predicted})
    table = table.assign(confidence=0.7, loss=0.1)
    probabilities = np.full((len(labels), 3), 1 / 3)
    return Predictions(table, probabilities, NAMES, None, np.array(features, np.float16), "one")


@pytest.fixture
def splits(tmp_path):
    corners = [[9, 0, 0], [-9, 0, 0], [0, 5, 0]]
    train = predictions(tmp_path / "train", NAMES, NAMES, corners)
    val = predictions(tmp_path / "val", NAMES, [NAMES[0]] * 3, corners)
    return {"train": train, "val": val}


def places(ax):
    return {
        one.get_label(): (np.asarray(one.get_offsets()), one.get_sizes()) for one in ax.collections
    }


def test_each_class_has_its_shape_and_colour_and_mistakes_are_crossed(splits):
    ax = plot_map(splits)
    found = places(ax)
    assert set(found) == {*NAMES, "wrong"}
    for name in NAMES:
        (one, other), sizes = found[name]
        assert np.allclose(one, other, atol=1e-3)  # the same features lie at the same place
        assert sizes[0] < sizes[1]  # training images are small
    assert len(found["wrong"][0]) == 2
    assert ax.get_title(loc="left").startswith("2 of 6 images are wrong (crossed)\nThe small")
    colours = {tuple(one.get_facecolor()[0][:3]) for one in ax.collections}
    shapes = {one.get_paths()[0].vertices.tobytes() for one in ax.collections}
    assert len(colours) == len(shapes) == 4
    assert ax.get_xlabel().endswith("% of the variance")
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [*sorted(NAMES), "wrong"]
    assert not any(text.get_parse_math() for text in ax.get_legend().get_texts())


def test_the_directions_are_those_of_most_variance(splits):
    points = places(plot_map({"val": splits["val"]}))
    (a,), (b,) = points["a"][0], points["$b$"][0]
    assert abs(a[0] - b[0]) == pytest.approx(18, rel=0.01)  # from 9 to -9
    assert abs(a[1] - b[1]) < 0.1


def test_of_many_classes_those_with_most_mistakes_are_named_and_the_others_grey(tmp_path):
    names = [f"class {i:02d}" for i in range(12)]
    wrong = names[:3] + [names[0]] * 9  # those after the third are mistaken
    one = predictions(tmp_path, names, wrong, np.eye(12))
    _, ax = plt.subplots()
    assert plot_map({"val": one}, ax=ax) is ax
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [*names[3:11], "wrong"]
    grey = [one for one in ax.collections if tuple(one.get_facecolor()[0][:3]) == to_rgb(GREY)]
    assert sum(len(one.get_offsets()) for one in grey) == 4


def test_a_map_without_features_is_refused(splits):
    without = Predictions(splits["val"].table, splits["val"].probabilities, NAMES)
    with pytest.raises(ParameterError, match="features=True"):
        plot_map({"train": splits["train"], "val": without})


def test_a_point_under_the_pointer_shows_its_image_and_its_name_as_text(splits):
    html = explore_map(splits, num_images=4)._repr_html_()
    assert html.count("<g ") == 4
    assert html.count("✗") == 2 * 2  # both mistakes, in the name for screen readers and as text
    assert html.count("data:image/jpeg;base64,") == 4
    assert html.count("data:image/png;base64,") == 1
    assert "<img" not in html and "<b>" not in html and "onerror=alert(1)>" not in html
    assert "&lt;b&gt;0.png" in html
    assert "script" not in html
    x, y = map(float, re.search(r"<circle cx='(\d+)' cy='(\d+)'", html).groups())
    width, height = map(int, re.search(r"viewBox='0 0 (\d+) (\d+)'", html).groups())
    assert 0 < x < width - 200 and 0 < y < height
    assert not plt.get_fignums()
