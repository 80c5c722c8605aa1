"""Training images, varied at random, and evaluation images, always the same.

To offer another augmentation, add a strength below.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from resnet_ft.errors import ParameterError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_INTERPOLATIONS = ("bilinear", "bicubic")

# The smallest share of the image that a random crop keeps, and what else happens to it.
_STRENGTHS: dict[str, tuple[float, list[v2.Transform]]] = {
    "light": (0.6, []),
    "medium": (0.35, [v2.ColorJitter(0.2, 0.2, 0.2)]),
    "strong": (0.2, [v2.TrivialAugmentWide()]),
}
STRENGTHS = tuple(_STRENGTHS)


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a network: `preprocessing_of` knows it for pretrained weights.

    The short side is resized to `side` pixels, with `interpolation` "bilinear" or "bicubic"; the
    square of `image_size` pixels in its middle, `crop_share` of that side, is kept; and its
    channels, from 0 to 1, are normalised with `mean` and `std`. The defaults are ImageNet's, as in
    torchvision's references. Raises ParameterError for what no image could be prepared with.
    """

    image_size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop_share: float = 224 / 256

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(one) for one in getattr(self, name)))
        numbers = [*self.mean, *self.std, self.image_size, self.crop_share]
        is_possible = (
            isinstance(self.image_size, int)
            and (len(self.mean), len(self.std)) == (3, 3)
            and all(map(math.isfinite, numbers))
            and min(*self.std, self.image_size) > 0
            and 0 < self.crop_share <= 1
            and self.interpolation in _INTERPOLATIONS
        )
        if not is_possible:
            raise ParameterError(
                f"{self} cannot prepare an image. image_size should be positive, mean and std have "
                "three numbers, those of std above 0, crop_share be above 0 and at most 1, and "
                f"interpolation one of {', '.join(_INTERPOLATIONS)}."
            )

    @property
    def side(self) -> int:
        """The short side, in pixels, that the square is cut from."""
        return round(self.image_size / self.crop_share)

    @property
    def normalisation(self) -> dict[str, Any]:
        """`mean` and `std`, as `imshow` and `show_images` take them."""
        return {"mean": self.mean, "std": self.std}

    def described(self) -> dict[str, Any]:
        """Plain data, as a checkpoint holds it."""
        plain = {name: list(values) for name, values in self.normalisation.items()}
        return {**vars(self), **plain}


def train_transform(
    preprocessing: int | Preprocessing = 224, *, strength: str = "medium"
) -> v2.Compose:
    """Random resized crop, flip and colour: an RGB image to a normalised (3, size, size) tensor.

    `preprocessing` is how the network wants its images; a number is their size, with ImageNet's
    mean and std. `strength`: "light" crops mildly, "medium" also changes colours, "strong" crops
    down to a fifth of the image and applies one operation of TrivialAugment (Müller and Hutter,
    ICCV 2021).
    """
    if strength not in _STRENGTHS:
        raise ParameterError(
            f"strength={strength!r} is unknown. Choose one of {', '.join(STRENGTHS)}."
        )
    wanted = as_preprocessing(preprocessing)
    smallest_crop, more = _STRENGTHS[strength]
    crop = _RandomResizedCrop(
        wanted.image_size,
        scale=(smallest_crop, 1.0),
        interpolation=InterpolationMode(wanted.interpolation),
        antialias=True,
    )
    return _compose(wanted, crop, v2.RandomHorizontalFlip(), *more)


class _RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's for one image, in half the time: torch is quick at contiguous bytes."""

    def forward(self, image: Tensor) -> Tensor:
        top, left, height, width = RandomResizedCrop.get_params(image, self.scale, self.ratio)
        crop = v2.functional.crop(image, top, left, height, width)
        crop = crop[None].contiguous(memory_format=torch.channels_last)[0]
        return v2.functional.resize(crop, self.size, self.interpolation, antialias=True)


def eval_transform(preprocessing: int | Preprocessing = 224) -> v2.Compose:
    """Resize and centre crop: an RGB image to a normalised (3, size, size) float tensor.

    `preprocessing` is that of `train_transform`.
    """
    wanted = as_preprocessing(preprocessing)
    resize = v2.Resize(wanted.side, InterpolationMode(wanted.interpolation), antialias=True)
    transform = _compose(wanted, resize, v2.CenterCrop(wanted.image_size))
    transform._preprocessing = wanted
    return transform


def as_preprocessing(wanted: int | Preprocessing) -> Preprocessing:
    """A number as the size of images that are prepared as torchvision's references do."""
    return wanted if isinstance(wanted, Preprocessing) else Preprocessing(wanted)


def described_preprocessing(described: Mapping[str, Any] | None) -> Preprocessing | None:
    """The `Preprocessing` in what a data set or a checkpoint says of it; None where none is there.

    Raises ParameterError or TypeError for what is none.
    """
    given = {name: value for name, value in (described or {}).items() if name != "ranges"}
    return Preprocessing(**given) if given else None


def preprocessing_in(transform: object) -> Preprocessing | None:
    """What `eval_transform` was called with to give this transform; None for any other."""
    found = getattr(transform, "_preprocessing", None)
    is_unchanged = found is not None and repr(eval_transform(found)) == repr(transform)
    return found if is_unchanged else None


def _compose(preprocessing: Preprocessing, *steps: v2.Transform) -> v2.Compose:
    normalise = v2.Normalize(list(preprocessing.mean), list(preprocessing.std))
    return v2.Compose([v2.ToImage(), *steps, v2.ToDtype(torch.float32, scale=True), normalise])


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
