"""Why a class: images beside the places that spoke for it, or beside training images alike."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import nn

from resnet_ft.data.images import open_image, open_resized
from resnet_ft.data.ranges import Ranges
from resnet_ft.data.transforms import Preprocessing, prepare, preprocessing_in
from resnet_ft.errors import ParameterError
from resnet_ft.evaluation.attention import grad_cam, similar_images
from resnet_ft.evaluation.predictions import Predictions, check_paths
from resnet_ft.notebook import percent, shorten
from resnet_ft.visualize.images import framed, show_images
from resnet_ft.visualize.style import BLUE, ORANGE, RED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DARK = 0.2  # how bright a place is that did not speak for a class
_short = partial(shorten, length=14)


def show_attention(
    predictions: Predictions,
    model: nn.Module,
    transform: Callable,
    *,
    num_images: int = 6,
    ranges: Ranges | None = None,
) -> "Figure":
    """What spoke for two classes: in the most confident mistakes, then the least certain images.

    A row per image: as the model sees it; lit where it spoke for the predicted class (`grad_cam`);
    lit where it spoke for the true class, or for the second one where the prediction is right. The
    line is at half of the most; all is dark where nothing spoke for a class. `transform` and
    `ranges` are those of the checkpoint. Raises ParameterError without paths, and like `grad_cam`.
    """
    table = check_paths(predictions.table).reset_index(drop=True)
    mistakes = table[table["predicted"] != table["label"]].nlargest(num_images // 2, "confidence")
    others = table.drop(mistakes.index).nsmallest(num_images - len(mistakes), "confidence")
    shown, classes = pd.concat([mistakes, others]), predictions.classes
    mean, std = (preprocessing_in(transform) or Preprocessing()).normalisation.values()
    pictures, titles, shares = list[np.ndarray](), list[str](), list[np.ndarray]()
    for row in shown.itertuples():
        pixels = np.array(open_image(row.path, ranges=ranges))
        image = torch.as_tensor(prepare(pixels, transform))
        picture = np.clip(image.permute(1, 2, 0).numpy() * std + mean, 0, 1)
        grey = _DARK * picture.mean(axis=2, keepdims=True)
        pictures.append(picture)
        titles.append(f"{'✓' if row.predicted == row.label else '✗'} is\n{_short(row.label)}")
        of_image = pd.Series(predictions.probabilities[row.Index], classes)
        likely = of_image.drop(row.predicted).idxmax()
        for name in (row.predicted, likely if row.predicted == row.label else row.label):
            spoke = grad_cam(model, image, classes.index(name)).clip(0)
            shares.append(spoke / max(spoke.max(), np.finfo(np.float32).tiny))
            pictures.append(grey + (picture - grey) * shares[-1][..., None])
            titles.append(f"for {_short(name)}\n{percent(of_image[name])}")
    heading = f"What spoke for a class: confident mistakes ({len(mistakes)}),\n"
    figure = show_images(pictures, titles, title=f"{heading}uncertain images ({len(others)})")
    lit = [ax for i, ax in enumerate(figure.axes) if i % 3]
    for ax, share in zip(lit, shares, strict=True):
        if share.min() < 0.5 < share.max():
            ax.contour(share, [0.5], colors=[ORANGE], linewidths=1.5)
    for ax in figure.axes[::3]:
        ax.title.set_color(BLUE if ax.get_title().startswith("✓") else RED)
    return figure


def show_neighbours(
    predictions: Predictions, training: Predictions, *, num_images: int = 4, num_similar: int = 3
) -> "Figure":
    """The most confident mistakes, each beside the training images most alike (`similar_images`).

    Raises ParameterError where there are no mistakes, paths or features.
    """
    table = check_paths(predictions.table).reset_index(drop=True)
    mistakes = table[table["predicted"] != table["label"]].nlargest(num_images, "confidence")
    if mistakes.empty:
        raise ParameterError("There are no mistakes to show.")
    similar = similar_images(predictions, training, mistakes.index, num_similar=num_similar)
    paths, titles = list[str](), list[str]()
    for row in mistakes.itertuples():
        alike = similar[similar["path"] == row.path]
        paths += [row.path, *alike["similar"]]
        titles.append(f"✗ {_short(row.predicted)}\nis {_short(row.label)}")
        titles += [f"{_short(one.label)}\n{one.similarity:.2f} alike" for one in alike.itertuples()]
    pictures = [framed(open_resized(path, 200)) for path in paths]
    heading, columns = "Mistakes, and what is most alike in training", len(paths) // len(mistakes)
    figure = show_images(pictures, titles, columns=columns, title=heading)
    figure.set_size_inches(*(0.75 * figure.get_size_inches()))  # its type is larger on a phone
    for ax in figure.axes[::columns]:
        ax.title.set_color(RED)
    return figure
