"""Browse a data set page by page, and try out augmentation."""

from contextlib import suppress
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from resnet_ft.data.dataset import ImageDataset
from resnet_ft.data.images import open_resized
from resnet_ft.data.index import DatasetIndex
from resnet_ft.data.transforms import STRENGTHS, train_transform
from resnet_ft.errors import ImageError
from resnet_ft.visualize.images import show_images
from resnet_ft.widgets.figure import FigureWidget

_PAGE = 12


def browse_dataset(index: DatasetIndex) -> ipywidgets.VBox:
    """A widget with the images of one class of one split, twelve per page."""
    split = ipywidgets.Dropdown(options=list(index.counts()), description="Split")
    class_name = ipywidgets.Dropdown(options=index.classes, description="Class")
    page = ipywidgets.BoundedIntText(value=1, min=1, max=1, description="Page")

    def draw() -> Figure:
        rows = index.split(split.value)
        paths = rows.loc[rows["class_name"] == class_name.value, "path"].tolist()
        page.max = max(1, -(-len(paths) // _PAGE))
        start = (page.value - 1) * _PAGE
        shown, titles = [], []
        for path in paths[start : start + _PAGE]:
            with suppress(ImageError):  # listed by the audit
                shown.append(open_resized(index.root / path, 200))
                titles.append(Path(path).name[-18:])
        if not shown:
            return plt.figure(figsize=(4, 1))
        return show_images(shown, titles, title=f"{len(shown)} of {len(paths)} images")

    images = FigureWidget(draw())
    for control in (split, class_name, page):
        control.observe(lambda _: images.draw(draw()), names="value")
    return ipywidgets.VBox([ipywidgets.HBox([split, class_name, page]), images])


def explore_augmentation(
    path: str | Path, *, image_size: int = 224, strength: str = "medium"
) -> ipywidgets.VBox:
    """A widget that shows an image as six epochs see it, for the chosen strength."""
    chosen = ipywidgets.ToggleButtons(options=STRENGTHS, value=strength, description="Strength")

    def draw() -> Figure:
        transform = train_transform(image_size, strength=chosen.value)
        dataset = ImageDataset([path], [0], [""], transform)
        views = [dataset[epoch, 0][0] for epoch in range(6)]
        return show_images(views, [f"epoch {i}" for i in range(1, 7)])

    images = FigureWidget(draw())
    chosen.observe(lambda _: images.draw(draw()), names="value")
    return ipywidgets.VBox([chosen, images])
