"""Training images, varied at random, and evaluation images, always the same.

To offer another augmentation, add a strength below.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import RandomResizedCrop, v2

from resnet_ft.errors import ParameterError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The smallest share of the image that a random crop keeps, and what else happens to it.
_STRENGTHS: dict[str, tuple[float, list[v2.Transform]]] = {
    "light": (0.6, []),
    "medium": (0.35, [v2.ColorJitter(0.2, 0.2, 0.2)]),
    "strong": (0.2, [v2.TrivialAugmentWide()]),
}
STRENGTHS = tuple(_STRENGTHS)


def train_transform(
    image_size: int = 224,
    *,
    strength: str = "medium",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> v2.Compose:
    """Random resized crop, flip and colour: an RGB image to a normalised (3, size, size) tensor.

    `strength`: "light" crops mildly, "medium" also changes colours, "strong" crops down to a fifth
    of the image and applies one operation of TrivialAugment (Müller and Hutter, ICCV 2021).
    """
    if strength not in _STRENGTHS:
        raise ParameterError(
            f"strength={strength!r} is unknown. Choose one of {', '.join(STRENGTHS)}."
        )
    smallest_crop, more = _STRENGTHS[strength]
    crop = _RandomResizedCrop(image_size, scale=(smallest_crop, 1.0), antialias=True)
    return _compose(crop, v2.RandomHorizontalFlip(), *more, mean=mean, std=std)


class _RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's for one image, in half the time: torch is quick at contiguous bytes."""

    def forward(self, image: Tensor) -> Tensor:
        top, left, height, width = RandomResizedCrop.get_params(image, self.scale, self.ratio)
        crop = v2.functional.crop(image, top, left, height, width)
        crop = crop[None].contiguous(memory_format=torch.channels_last)[0]
        return v2.functional.resize(crop, self.size, antialias=True)


def eval_transform(
    image_size: int = 224,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> v2.Compose:
    """Resize and centre crop: an RGB image to a normalised (3, size, size) float tensor."""
    resize = v2.Resize(side_before_crop(image_size), antialias=True)
    return _compose(resize, v2.CenterCrop(image_size), mean=mean, std=std)


def side_before_crop(image_size: int) -> int:
    """The short side that `eval_transform` crops from: 256/224, as in torchvision's references."""
    return round(image_size * 256 / 224)


def _compose(*steps: v2.Transform, mean: Sequence[float], std: Sequence[float]) -> v2.Compose:
    to_float = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose(
        [v2.ToImage(), *steps, to_float, v2.Normalize(mean=list(mean), std=list(std))]
    )


class Preprocessing(TypedDict, total=False):
    """What is done to an image for the model, as plain data that a checkpoint stores.

    The arguments of `eval_transform`, where that is used, and the `ranges` of `open_image` of a
    data set that needs them.
    """

    image_size: int
    mean: list[float]
    std: list[float]
    ranges: dict[str, list[float]]


def describe_preprocessing(transform: object) -> Preprocessing | None:
    """What `eval_transform` was called with to give this transform; None for any other."""
    match getattr(transform, "transforms", None):
        case [_, v2.Resize(), v2.CenterCrop(size=size), _, v2.Normalize(mean=mean, std=std)]:
            mean, std = ([float(value) for value in values] for values in (mean, std))
            if repr(eval_transform(size[0], mean=mean, std=std)) == repr(transform):
                return Preprocessing(image_size=size[0], mean=mean, std=std)
    return None


def prepare(pixels: np.ndarray, transform: Callable) -> object:
    """What a transform makes of an RGB image, a uint8 array of shape (H, W, 3).

    A transform that begins with `v2.ToImage`, as those above do, gets a tensor at once; any other
    gets a PIL image, as the transforms of torchvision's tutorials expect.
    """
    steps = getattr(transform, "transforms", ())
    if steps and isinstance(steps[0], v2.ToImage):
        return transform(tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)))
    return transform(Image.fromarray(pixels))


def split_transform(transform: Callable) -> tuple[Callable, Callable | None]:
    """The part of a transform for one image at a time, and the part for a batch at once.

    The second, which takes bytes (N, H, W, 3) to floats (N, 3, H, W), is the conversion and the
    normalisation with which the transforms above end; None for a transform that ends otherwise.
    """
    steps = getattr(transform, "transforms", None)
    match steps:
        case [v2.ToImage(), *_, v2.ToDtype(dtype=torch.float32, scale=True), v2.Normalize()]:
            if sum(isinstance(step, v2.ToDtype) for step in steps) == 1:
                return v2.Compose(steps[:-2]), partial(_finish, steps[-1])
    return transform, None


def _finish(normalise: v2.Normalize, images: Tensor, empty: Callable[..., Tensor]) -> Tensor:
    count, height, width, channels = images.shape
    floats = empty(count, channels, height, width)
    floats.copy_(images.permute(0, 3, 1, 2)).mul_(1 / 255)
    return v2.functional.normalize(floats, normalise.mean, normalise.std, inplace=True)
