"""Images as pictures: one, a grid of them, and what a model says of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from resnet_ft import engine
from resnet_ft.data.images import open_image
from resnet_ft.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from resnet_ft.evaluation.predictions import Predictions, class_names
from resnet_ft.models.freezing import evaluation_mode
from resnet_ft.visualize.style import BLUE, RED, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
            imshow(image, titles[i] if titles else None, ax=axes.flat[i], mean=mean, std=std)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="semibold", fontsize=12)
    return figure


def visualize_model(model: nn.Module, dataloader: DataLoader, *, num_images: int = 6) -> "Figure":
    """The first images of a loader with predicted and true class; wrong ones are titled in red."""
    names = class_names(dataloader)
    preprocessing = getattr(dataloader.dataset, "preprocessing", None) or {}
    normalisation = {key: preprocessing[key] for key in ("mean", "std") if key in preprocessing}
    images, labels = _first(dataloader, num_images)
    device = engine.device()
    with evaluation_mode(model), torch.inference_mode():
        confidence, predicted = model.to(device)(images.to(device)).softmax(1).cpu().max(1)
    classes = getattr(model, "classes", None) or names
    said = [classes[i] if classes else str(int(i)) for i in predicted]
    true = [names[i] if names else str(int(i)) for i in labels]
    titles = [f"{s} ({c:.0%})\nis {t}" for s, c, t in zip(said, confidence, true, strict=True)]
    right = sum(s == t for s, t in zip(said, true, strict=True))
    heading = f"{right} of {len(true)} are predicted right"
    figure = show_images(list(images), titles, title=heading, **normalisation)
    _colour_titles(figure, [s == t for s, t in zip(said, true, strict=True)])
    return figure


def _first(dataloader: DataLoader, count: int) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for batch, batch_labels in dataloader:
        images.append(batch)
        labels.append(batch_labels)
        if sum(map(len, images)) >= count:
            break
    return torch.cat(images)[:count], torch.cat(labels)[:count]


def _colour_titles(figure: "Figure", right: Sequence[bool]) -> None:
    for ax, is_right in zip(figure.axes, right, strict=False):
        ax.title.set_color(BLUE if is_right else RED)


def show_mistakes(predictions: Predictions, *, num_images: int = 6) -> "Figure":
    """The mistakes of which the model was surest; where there are none, its least sure answers."""
    table = predictions.table
    wrong = table[table["predicted"] != table["label"]].nlargest(num_images, "confidence")
    heading = f"The surest of {(table['predicted'] != table['label']).sum()} mistakes"
    if wrong.empty:
        wrong, heading = (
            table.nsmallest(num_images, "confidence"),
            "No mistakes: the least sure answers",
        )
    rows = list(wrong.itertuples())
    titles = [f"{row.predicted} ({row.confidence:.0%})\nis {row.label}" for row in rows]
    figure = show_images([open_image(row.path) for row in rows], titles, title=heading)
    _colour_titles(figure, [row.predicted == row.label for row in rows])
    return figure
