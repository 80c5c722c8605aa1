"""See what the training augmentation does to an image, from light to strong."""

from pathlib import Path

import ipywidgets

from resnet_ft.data.dataset import ImageDataset
from resnet_ft.data.transforms import STRENGTHS, train_transform
from resnet_ft.visualize.images import show_images
from resnet_ft.widgets.picture import to_png


def explore_augmentation(
    path: str | Path, *, image_size: int = 224, strength: str = "medium"
) -> ipywidgets.VBox:
    """A widget that shows an image as six epochs see it, for the strength that is chosen."""
    chosen = ipywidgets.ToggleButtons(options=STRENGTHS, value=strength, description="Strength")
    images = ipywidgets.Image(format="png", layout={"max_width": "100%"})

    def draw(_=None) -> None:
        transform = train_transform(image_size, strength=chosen.value)
        dataset = ImageDataset([path], [0], [""], transform)
        views = [dataset[epoch, 0][0] for epoch in range(6)]
        images.value = to_png(show_images(views, [f"epoch {i}" for i in range(1, 7)]))

    chosen.observe(draw, names="value")
    draw()
    return ipywidgets.VBox([chosen, images])
