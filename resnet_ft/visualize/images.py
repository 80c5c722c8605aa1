"""Images as pictures: one, a grid of them, and what a model says of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from resnet_ft.data.images import open_image
from resnet_ft.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from resnet_ft.errors import ParameterError
from resnet_ft.evaluation.predictions import Predictions, class_names, evaluate
from resnet_ft.visualize.style import BLUE, RED, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL_PIXELS = 400

AnyImage = Tensor | Image.Image | np.ndarray


def imshow(
    image: AnyImage,
    title: str | None = None,
    *,
    ax: "Axes | None" = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> "Axes":
    """Show one image and return its axes.

    A float tensor (3, H, W) is taken as normalised with `mean` and `std`, as the data loaders
    deliver it; a uint8 tensor, a PIL image and an array (H, W, 3) are shown as they are.
    """
    import matplotlib.pyplot as plt

    with style():
        ax = ax or plt.subplots()[1]
        ax.imshow(_pixels(image, mean, std), cmap="gray")
        ax.axis("off")
        if title is not None:
            ax.set_title(title, loc="center", fontsize=10, fontweight="normal")
    return ax


def _pixels(image: AnyImage, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    if not isinstance(image, Tensor):
        return np.asarray(image)
    image = image.detach().cpu()
    if image.is_floating_point():
        image = image * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
        image = image.clamp(0, 1)
    return image.permute(1, 2, 0).numpy()


def _small(image: AnyImage) -> AnyImage:
    """A photograph of a telephone at the size of a grid's cell, which draws much faster."""
    if isinstance(image, Image.Image) and max(image.size) > _CELL_PIXELS:
        image = image.copy()
        image.thumbnail((_CELL_PIXELS, _CELL_PIXELS))
    return image


def show_images(
    images: Sequence[AnyImage],
    titles: Sequence[str] | None = None,
    *,
    columns: int = 6,
    title: str | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> "Figure":
    """A grid of images, row by row, each with its title."""
    import matplotlib.pyplot as plt

    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    with style():
        size = (1.9 * columns, (2.2 if titles else 1.9) * rows + (0.4 if title else 0))
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
        for ax in axes.flat:
            ax.axis("off")
        for i, image in enumerate(images):
            title_of_image = titles[i] if titles else None
            imshow(_small(image), title_of_image, ax=axes.flat[i], mean=mean, std=std)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def visualize_model(model: nn.Module, dataloader: DataLoader, *, num_images: int = 6) -> "Figure":
    """Images from all over a data set, with predicted and true class, in orange where wrong."""
    dataset = dataloader.dataset
    chosen = torch.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).long().tolist()
    subset = Subset(dataset, chosen)
    subset.classes = class_names(dataloader)
    table = evaluate(model, DataLoader(subset, batch_size=len(chosen))).table
    right = (table["predicted"] == table["label"]).sum()
    preprocessing = getattr(dataset, "preprocessing", None) or {}
    return _show_answers(
        [dataset[i][0] for i in chosen],
        table,
        f"{right} of {len(table)} are predicted right",
        **{key: preprocessing[key] for key in ("mean", "std") if key in preprocessing},
    )


def show_mistakes(predictions: Predictions, *, num_images: int = 6) -> "Figure":
    """The mistakes of which the model was surest; where there are none, its least sure answers."""
    table = predictions.table
    if table["path"].isna().any():
        raise ParameterError(
            "These predictions do not know their images: evaluate with a loader that does not "
            'shuffle and has a dataset with samples, such as dataloaders["val"].'
        )
    mistakes = table[table["predicted"] != table["label"]]
    if mistakes.empty:
        shown = table.nsmallest(num_images, "confidence")
        heading = "No mistakes: its least sure answers"
    else:
        shown = mistakes.nlargest(num_images, "confidence")
        heading = f"The {len(shown)} surest of {len(mistakes)} mistakes"
    return _show_answers([open_image(path) for path in shown["path"]], shown, heading)


def _show_answers(
    images: Sequence[AnyImage], table: pd.DataFrame, heading: str, **normalisation: Sequence[float]
) -> "Figure":
    rows = list(table.itertuples())
    titles = [f"{row.predicted} ({row.confidence:.0%})\nis {row.label}" for row in rows]
    figure = show_images(images, titles, title=heading, **normalisation)
    for ax, row in zip(figure.axes, rows, strict=False):  # the last axes may be empty
        ax.title.set_color(BLUE if row.predicted == row.label else RED)
    return figure
