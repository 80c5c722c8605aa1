"""A data set as pictures: what a class looks like in the mean, and copies side by side."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from resnet_ft.data.index import DatasetIndex
from resnet_ft.data.resizing import open_resized
from resnet_ft.errors import ImageError, ParameterError
from resnet_ft.visualize.images import show_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
