"""Images as figures: one, a grid of them, those of a data set, and what a model predicts."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from resnet_ft.evaluation.predictions import Predictions, check_paths, class_names, evaluate
from resnet_ft.notebook import as_unicode, percent, shorten
from resnet_ft.visualize.style import BLUE, RED, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AnyImage = Tensor | Image.Image | np.ndarray

_CELL = 400  # pixels: larger images are shrunk for a grid, which draws much faster
_SIDE = 200  # pixels of the short side of images that are read for a grid


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
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        if image.is_floating_point():
            image = image * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
            image = image.clamp(0, 1)
        image = image.permute(1, 2, 0).numpy()
    with style() as plt:
        axes: Axes = ax or plt.subplots()[1]
        axes.imshow(image, cmap="gray")
        axes.axis("off")
        if title is not None:
            text = axes.set_title(as_unicode(title), loc="center", fontsize=10, fontweight="normal")
            text.set_parse_math(False)  # the axes may have been made outside of `style`
    return axes


def show_images(
    images: Sequence[AnyImage],
    titles: Sequence[str] | None = None,
    *,
    columns: int = 3,
    title: str | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> "Figure":
    """A grid of images, row by row, each with its title; `mean` and `std` are as in `imshow`.

    Raises ParameterError where there are no images, or not a title for each.
    """
    if not len(images) or (titles and len(titles) != len(images)):
        raise ParameterError(
            f"There are {len(images)} images to show, with {len(titles or ())} titles. Give one "
            "image at least, and a title for each or none at all."
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    size = (1.9 * columns, (2.2 if titles else 1.9) * rows + (0.4 if title else 0))
    with style() as plt:
        figure: Figure
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
        for ax in axes.flat:
            ax.axis("off")
            ax.set_anchor("N")  # titles of a row stand in line
        for i, image in enumerate(images):
            shown = image
            if isinstance(image, Image.Image) and max(image.size) > _CELL:
                shown = ImageOps.contain(image, (_CELL, _CELL))
            imshow(shown, titles[i] if titles else None, ax=axes.flat[i], mean=mean, std=std)
        if title:
            figure.suptitle(as_unicode(title), x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def show_classes(index: DatasetIndex, *, split: str = "train", num_classes: int = 12) -> "Figure":
    """One image of each class; of the first classes where there are many."""
    names = index.classes[:num_classes]
    first = {name: next(_readable(index, name, split), None) for name in names}
    images = {name: framed(image) for name, image in first.items() if image is not None}
    if not images:
        raise ParameterError(f"No image of split {split!r} can be read. Choose another split.")
    return show_images(list(images.values()), list(images))


def show_class(
    index: DatasetIndex, class_name: str, *, split: str = "train", num_images: int = 12
) -> "Figure":
    """A contact sheet of the first images of a class; files that cannot be read are left out."""
    images = list(islice(_readable(index, class_name, split), num_images))
    if not images:
        raise ParameterError(f"No image of class {class_name!r} in {split!r} can be read.")
    return show_images([framed(image) for image in images], title=class_name, columns=4)


def plot_class_means(
    index: DatasetIndex, *, split: str = "train", num_images: int = 100, side: int = 128
) -> "Figure":
    """The mean of up to `num_images` images of each class, cropped to squares.

    A shape or a colour that shows in a mean is one that a model can use: often it is the
    background. Files that cannot be read are left out.
    """
    means, titles, counts = [], [], index.split(split)["class_name"].value_counts()
    for class_name in index.classes:
        images = islice(_readable(index, class_name, split, side, num_images), num_images)
        squares = [np.asarray(ImageOps.fit(image, (side, side))) for image in images]
        if squares:
            means.append(np.mean(squares, axis=0).round().astype(np.uint8))
            titles.append(f"{class_name}\n({len(squares)} of {counts[class_name]:,} images)")
    if not means:
        raise ParameterError(f"No image of split {split!r} can be read. Choose another split.")
    return show_images(means, titles, title="The mean image of each class")


def _readable(
    index: DatasetIndex, class_name: str, split: str, side: int = _SIDE, most: int | None = None
) -> Iterator[Image.Image]:
    """The images of a class that can be read, shrunk to `side`; the audit lists the others.

    With `most`, about that many from all over the class.
    """
    rows = index.split(split)
    paths = rows.loc[rows["class_name"] == class_name, "path"]
    for path in paths[:: max(1, len(paths) // most) if most else 1]:
        with suppress(ImageError):
            yield open_resized(index.root / path, side)


def show_pairs(root: str | Path, pairs: pd.DataFrame, *, num_pairs: int = 12) -> "Figure":
    """Copies side by side, two pairs per row, each with its class and split.

    `root` and `pairs` are those of an `Audit`; `pairs` may be a part of them.
    """
    if pairs.empty:
        raise ParameterError("There are no pairs to show.")
    shown = pairs.head(num_pairs)
    paths = [Path(root, path) for pair in shown.itertuples() for path in (pair.path, pair.other)]
    titles = ["/".join(path.parts[-3:-1]) + f"\n{shorten(path.name, 20)}" for path in paths]
    number = f"{len(shown)} of {len(pairs)}" if len(pairs) > len(shown) else str(len(pairs))
    heading = f"{number} {'pair' if len(pairs) == 1 else 'pairs'} of copies"
    return show_images(
        [framed(open_resized(path, _SIDE)) for path in paths], titles, title=heading, columns=4
    )


def framed(image: Image.Image) -> Image.Image:
    """The whole image in a white square, so that the images of a grid stand in line."""
    return ImageOps.pad(image, (_SIDE, _SIDE), color="white")


def jpeg_thumbnail(path: Path, size: tuple[int, int]) -> bytes:
    """An image as a JPEG file for a web page, of at most this width and height in pixels."""
    image = open_resized(path, min(size))
    image.thumbnail(size)
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def show_label_errors(errors: pd.DataFrame, *, num_images: int = 12) -> "Figure":
    """The first images of `find_label_errors`, with their label and the suggested one."""
    if errors.empty:
        raise ParameterError("There are no label errors to show.")
    shown = errors.head(num_images)
    titles = [f"{row.label}?\nrather {row.suggested}" for row in shown.itertuples()]
    heading = f"{len(shown)} of {len(errors)} labels to check"
    return show_images(
        [framed(open_resized(path, _SIDE)) for path in shown["path"]], titles, title=heading
    )


def visualize_model(
    model: nn.Module,
    dataloader: DataLoader,
    *,
    num_images: int = 6,
    predictions: Predictions | None = None,
) -> "Figure":
    """Images from all over a data set, with predicted and true class, in red where wrong.

    As many of them are wrong, up to rounding, as in the whole data set, so that the figure shows
    what the accuracy says. The model predicts all images once for that, unless `predictions` are
    given: those of `evaluate`, with a row for each sample of `dataloader.dataset` in its order.
    """
    dataset: Any = dataloader.dataset
    if predictions is None:
        samples: Any = Subset(dataset, range(len(dataset)))
        samples.classes = class_names(dataloader)
        in_order = DataLoader(samples, batch_size=getattr(dataloader, "batch_size", None) or 32)
        predictions = evaluate(model, in_order)
    if len(predictions.table) != len(dataset):
        raise ParameterError(
            f"There are {len(predictions.table)} predictions for {len(dataset)} images. Give those "
            "of evaluate(model, dataloader), or none."
        )
    chosen = _alike(predictions.table, num_images)
    table = predictions.table.iloc[chosen]
    correct = int((table["predicted"] == table["label"]).sum())
    preprocessing = getattr(dataset, "preprocessing", None) or {}
    return _show_predictions(
        [dataset[i][0] for i in chosen],
        table,
        f"{correct} of these {len(table)} are correct; "
        f"of all {len(dataset):,}, {predictions.accuracy:.1%}",
        **{key: preprocessing[key] for key in ("mean", "std") if key in preprocessing},
    )


def _alike(table: pd.DataFrame, num_images: int) -> list[int]:
    """Rows from all over a table of predictions, with the same share of wrong ones."""
    wrong = (table["predicted"] != table["label"]).to_numpy()
    count = min(num_images, len(table))
    num_wrong = min(round(count * wrong.mean()), wrong.sum())
    num_wrong = max(num_wrong, count - (~wrong).sum())
    chosen: list[int] = []
    for rows, number in (
        (np.flatnonzero(wrong), num_wrong),
        (np.flatnonzero(~wrong), count - num_wrong),
    ):
        chosen += (
            rows[np.linspace(0, len(rows) - 1, int(number)).astype(int)].tolist() if number else []
        )
    return sorted(chosen)


def show_mistakes(predictions: Predictions, *, num_images: int = 6) -> "Figure":
    """The most confident mistakes; where there are none, the least confident predictions."""
    table = check_paths(predictions.table)
    mistakes = table[table["predicted"] != table["label"]]
    if mistakes.empty:
        shown = table.nsmallest(num_images, "confidence")
        heading = "No mistakes; the least confident predictions"
    else:
        shown = mistakes.nlargest(num_images, "confidence")
        heading = f"The {len(shown)} most confident of {len(mistakes)} mistakes"
    return _show_predictions([open_image(path) for path in shown["path"]], shown, heading)


def _show_predictions(
    images: Sequence[AnyImage], table: pd.DataFrame, heading: str, **normalisation: Any
) -> "Figure":
    rows = list(table.itertuples())
    marks = ["✓" if row.predicted == row.label else "✗" for row in rows]
    titles = [
        f"{mark} {row.predicted} ({percent(row.confidence)})\nis {row.label}"
        for mark, row in zip(marks, rows, strict=True)
    ]
    figure = show_images(images, titles, title=heading, **normalisation)
    for ax, row in zip(figure.axes, rows, strict=False):  # the last axes may be empty
        ax.title.set_color(BLUE if row.predicted == row.label else RED)
    return figure
