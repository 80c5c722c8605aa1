"""Images as pictures: one, a grid of them, and what a model says of them."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from resnet_ft.data.images import open_image, open_resized
from resnet_ft.data.index import DatasetIndex
from resnet_ft.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from resnet_ft.errors import ImageError, ParameterError
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


_PAIRS_A_ROW = 3


def show_class(
    index: DatasetIndex, class_name: str, *, split: str = "train", num_images: int = 12
) -> "Figure":
    """A contact sheet of the first images of a class; files that cannot be read are left out."""
    images = _first_images(index, class_name, split, num_images)
    if not images:
        raise ParameterError(f"No image of class {class_name!r} in {split!r} can be read.")
    return show_images(images, title=class_name)


def show_classes(index: DatasetIndex, *, split: str = "train", num_classes: int = 12) -> "Figure":
    """One image of each class, of the first classes where there are many."""
    names = index.classes[:num_classes]
    first = {name: _first_images(index, name, split, 1) for name in names}
    images = {name: found[0] for name, found in first.items() if found}
    if not images:
        raise ParameterError(f"No image of split {split!r} can be read. Choose another split.")
    return show_images(list(images.values()), list(images))


def _first_images(
    index: DatasetIndex, class_name: str, split: str, count: int
) -> list[Image.Image]:
    rows, images = index.split(split), []
    for path in rows.loc[rows["class_name"] == class_name, "path"]:
        if len(images) == count:
            break
        with suppress(ImageError):  # listed by the audit
            images.append(open_resized(index.root / path, 200))
    return images


def plot_class_means(
    index: DatasetIndex, *, split: str = "train", num_images: int = 100, side: int = 128
) -> "Figure":
    """The mean of up to `num_images` images of each class, cropped to squares.

    A shape or a colour that shows in a mean is one that a network can use: often it is the
    background. Files that cannot be read are left out.
    """
    means, titles = [], []
    for class_name, rows in index.split(split).groupby("class_name", observed=True):
        paths = [index.root / path for path in rows["path"]]
        squares = _squares(paths[:: max(1, len(paths) // num_images)][:num_images], side)
        if squares:
            means.append(np.mean(squares, axis=0).round().astype(np.uint8))
            titles.append(f"{class_name} ({len(squares)})")
    if not means:
        raise ParameterError(f"No image of split {split!r} can be read. Choose another split.")
    return show_images(means, titles, title="The mean image of each class")


def _squares(paths: list[Path], side: int) -> list[np.ndarray]:
    squares = []
    for path in paths:
        with suppress(ImageError):
            squares.append(np.asarray(ImageOps.fit(open_resized(path, side), (side, side))))
    return squares


def show_pairs(root: str | Path, pairs: pd.DataFrame, *, num_pairs: int = 12) -> "Figure":
    """Copies side by side, three pairs a row, each with its class and split.

    `root` and `pairs` are those of an `Audit`; `pairs` may be a part of them.
    """
    if pairs.empty:
        raise ParameterError("There are no pairs to show.")
    shown = pairs.head(num_pairs)
    paths = [path for pair in shown.itertuples() for path in (pair.path, pair.other)]
    images = [_framed(open_resized(Path(root) / path, 200)) for path in paths]
    titles = ["/".join(Path(path).parts[-3:-1]) + f"\n{_short(Path(path).name)}" for path in paths]
    number = f"{len(shown)} of {len(pairs)}" if len(pairs) > len(shown) else str(len(pairs))
    heading = f"{number} {'pair' if len(pairs) == 1 else 'pairs'} of copies"
    return show_images(images, titles, columns=2 * _PAIRS_A_ROW, title=heading)


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:8]}…{name[-11:]}"


def _framed(image: Image.Image) -> Image.Image:
    return ImageOps.pad(image, (200, 200), color="white")


def show_label_errors(errors: pd.DataFrame, *, num_images: int = 12) -> "Figure":
    """The first images of `find_label_errors`, with their label and the one that it suggests."""
    if errors.empty:
        raise ParameterError("There are no label errors to show.")
    shown = errors.head(num_images)
    images = [_framed(open_resized(path, 200)) for path in shown["path"]]
    titles = [f"{row.label}?\nrather {row.suggested}" for row in shown.itertuples()]
    heading = f"{len(shown)} of {len(errors)} labels to look at"
    return show_images(images, titles, title=heading)
