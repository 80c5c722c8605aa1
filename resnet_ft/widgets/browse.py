"""Browse a data set page by page, and try out augmentation."""

import random
from contextlib import suppress
from html import escape
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from resnet_ft.data.dataset import ImageDataset
from resnet_ft.data.images import open_resized
from resnet_ft.data.index import DatasetIndex
from resnet_ft.data.transforms import (
    STRENGTHS,
    Preprocessing,
    described_preprocessing,
    train_transform,
)
from resnet_ft.errors import ImageError, ParameterError
from resnet_ft.notebook import shorten
from resnet_ft.visualize.images import framed, show_images
from resnet_ft.widgets.buttons import make_button
from resnet_ft.widgets.figure import FigureWidget

_PAGE = 12
_SIDE = 200  # pixels
_LONGEST_NAME = 19  # characters of a title; the whole name stands below the images
_NUM_VIEWS = 6  # epochs


def browse_dataset(index: DatasetIndex) -> ipywidgets.VBox:
    """A widget with the images of one class of one split, twelve per page."""
    narrow = {"width": "220px"}
    split = ipywidgets.Dropdown(options=list(index.counts()), description="Split", layout=narrow)
    class_name = ipywidgets.Dropdown(options=index.classes, description="Class", layout=narrow)
    page = ipywidgets.BoundedIntText(
        value=1, min=1, max=1, description="Page", layout={"width": "160px"}
    )
    names = ipywidgets.HTML()
    paths: list[str] = []

    def draw() -> Figure:
        shown, titles, long = [], [], []
        for path in paths[(page.value - 1) * _PAGE :][:_PAGE]:
            with suppress(ImageError):  # listed by the audit
                shown.append(framed(open_resized(index.root / path, _SIDE)))
                name = Path(path).name
                titles.append(shorten(name, _LONGEST_NAME))
                long += [name] if titles[-1] != name else []
        names.value = f"<small>{' · '.join(map(escape, long))}</small>"
        if not shown:
            return plt.figure(figsize=(4, 1))
        return show_images(shown, titles, title=f"{len(shown)} of {len(paths)} images")

    def choose(_: object = None) -> None:
        rows = index.split(split.value)
        paths[:] = rows.loc[rows["class_name"] == class_name.value, "path"]
        page.max = max(1, -(-len(paths) // _PAGE))
        if page.value == 1:
            images.draw(draw())
        page.value = 1  # draws where it changes

    images = FigureWidget(plt.figure(figsize=(4, 1)))
    choose()
    split.observe(choose, names="value")
    class_name.observe(choose, names="value")
    page.observe(lambda _: images.draw(draw()), names="value")

    def step(by: int) -> None:
        page.value += by  # the widget keeps it within its range

    buttons = [
        make_button("Back", lambda: step(-1), "arrow-left"),
        make_button("Next", lambda: step(1), "arrow-right"),
    ]
    bar = ipywidgets.HBox([split, class_name, page, *buttons], layout={"flex_flow": "row wrap"})
    return ipywidgets.VBox([bar, images, names])


def explore_augmentation(
    source: ImageDataset | str | Path,
    *,
    index: int = 0,
    image_size: int = 224,
    strength: str = "medium",
) -> ipywidgets.VBox:
    """A widget that shows an image as six epochs see it, for the chosen strength.

    `source` is the training data set, `loaders["train"].dataset`, of which another image is a click
    away, or the path of one image. With the data set's seed, an image and an epoch have the same
    crop as in training. Raises ParameterError for an index that the data set does not have.
    """
    if not isinstance(source, ImageDataset):
        source = ImageDataset([source], [0], [""], train_transform(image_size))
    if not 0 <= index < len(source):
        raise ParameterError(f"index={index} should be from 0 to {len(source) - 1}.")
    preprocessing = described_preprocessing(source.preprocessing) or Preprocessing(image_size)
    order = [index, *random.Random(source.seed).sample(range(len(source)), len(source))]
    chosen = ipywidgets.ToggleButtons(options=STRENGTHS, value=strength, description="Strength")
    name = ipywidgets.HTML()

    def draw() -> Figure:
        path, label = source.images.paths[order[0]], source.classes[source.labels[order[0]]]
        name.value = f"<b>{escape(label)}</b> <code>{escape(Path(path).name)}</code>"
        views = augmented_views(source, order[0], preprocessing, strength=chosen.value)
        titles = [f"epoch {i}" for i in range(1, _NUM_VIEWS + 1)]
        return show_images(views, titles, **preprocessing.normalisation)

    def another() -> None:
        order.append(order.pop(0))
        images.draw(draw())

    images = FigureWidget(draw())
    chosen.observe(lambda _: images.draw(draw()), names="value")
    button = make_button("Another image", another, "random")
    button.layout.width = "150px"
    button.set_trait("disabled", len(source) == 1)
    bar = ipywidgets.HBox([chosen, button], layout={"flex_flow": "row wrap"})
    return ipywidgets.VBox([bar, images, name])


def augmented_views(
    dataset: ImageDataset, index: int, preprocessing: Preprocessing, *, strength: str
) -> list[Tensor]:
    """Image `index` as each of the first six epochs sees it, at another strength."""
    transform = train_transform(preprocessing, strength=strength)
    varied = ImageDataset(
        dataset.images, dataset.labels, dataset.classes, transform, seed=dataset.seed
    )
    return [varied[epoch, index][0] for epoch in range(_NUM_VIEWS)]
