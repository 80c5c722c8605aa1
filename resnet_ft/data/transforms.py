"""Training images, varied at random, and evaluation images, always the same.

To offer another augmentation, add a strength below.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms, tv_tensors
from torchvision.transforms import InterpolationMode, v2

from resnet_ft.errors import ParameterError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_INTERPOLATIONS = ("bilinear", "bicubic")

STRENGTHS = ("light", "medium", "strong")


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
    if strength not in STRENGTHS:
        raise ParameterError(
            f"strength={strength!r} is unknown. Choose one of {', '.join(STRENGTHS)}."
        )
    wanted = as_preprocessing(preprocessing)
    crop = RandomResizedCrop(
        wanted.image_size,
        scale=({"light": 0.6, "medium": 0.35, "strong": 0.2}[strength], 1.0),
        interpolation=InterpolationMode(wanted.interpolation),
        antialias=True,
    )
    more = [v2.TrivialAugmentWide()] if strength == "strong" else []
    colours = [ColorJitter(0.2, 0.2, 0.2)] if strength == "medium" else []
    return _compose(wanted, crop, v2.RandomHorizontalFlip(), *more, of_floats=colours)


class RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's for one image, in half the time: torch is quick at contiguous bytes."""

    def forward(self, image: Tensor) -> Tensor:
        place = transforms.RandomResizedCrop.get_params(image, self.scale, self.ratio)
        crop = v2.functional.crop(image, *place)
        crop = crop[None].contiguous(memory_format=torch.channels_last)[0]
        return v2.functional.resize(crop, self.size, self.interpolation, antialias=True)


_CONTRAST, _SATURATION = 1, 2  # as torchvision numbers what it does, after brightness
_GREY = (0.2989, 0.587, 0.114)  # how torchvision weighs the channels


class ColorJitter(v2.ColorJitter):
    """torchvision's brightness, contrast and saturation, for floats from 0 to 1, as one matrix.

    Each of the three is affine in a pixel's colour, once the mean colour of the image is known, and
    so is their product, in any order. Values are clamped once, at the end; on bytes, torchvision
    clamps and truncates after every one.
    """

    def draw(self) -> list[float]:
        """What to do with an image: four numbers of the order, and a factor for each."""
        drawn = self.make_params([])
        factors = [drawn[f"{name}_factor"] for name in ("brightness", "contrast", "saturation")]
        return [*drawn["fn_idx"].tolist(), *(1.0 if one is None else one for one in factors)]

    def forward(self, image: Tensor) -> Tensor:
        draws = torch.tensor([self.draw()], device=image.device)
        matrix, offset = colour_matrix(draws, image.mean((1, 2))[None])
        changed = torch.addmm(offset, matrix[0], image.reshape(3, -1))
        return tv_tensors.wrap(changed.clamp_(0, 1).view_as(image), like=image)


def colour_matrix(draws: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (N, 3, 3) and what they add, (N,), for what `ColorJitter.draw` drew, (N, 7).

    `means` (N, 3) are the mean colours of the images, on the same device. A pixel becomes so much
    of itself, so much of its grey value in every channel, and so much of white.
    """
    order = draws[:, :4].long()
    factors = torch.cat([draws[:, 4:], draws.new_ones(len(draws), 1)], dim=1).gather(1, order)
    to_grey, to_mean = ((1 - factors) * (order == one) for one in (_SATURATION, _CONTRAST))
    weights = constant(_GREY, draws.device)
    of_white, of_image = sum(_GREY), means @ weights  # grey values
    itself, grey, white = draws.new_ones(len(draws)), 0 * of_image, 0 * of_image
    for factor, greyer, flatter in torch.stack([factors, to_grey, to_mean]).permute(2, 0, 1):
        share = itself + of_white * grey  # of a pixel's grey value in that of what it became
        mean = share * of_image + of_white * white
        white = (factor + of_white * greyer) * white + flatter * mean
        itself, grey = factor * itself, factor * grey + greyer * share
    own = torch.eye(3, device=draws.device) * itself[:, None, None]
    return own + weights * grey[:, None, None], white


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


def _compose(
    preprocessing: Preprocessing, *steps: v2.Transform, of_floats: Sequence[v2.Transform] = ()
) -> v2.Compose:
    normalise = v2.Normalize(list(preprocessing.mean), list(preprocessing.std))
    to_floats = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([v2.ToImage(), *steps, to_floats, *of_floats, normalise])


def prepare(pixels: np.ndarray, transform: Callable) -> object:
    """What a transform makes of an RGB image, a uint8 array of shape (H, W, 3).

    A transform that begins with `v2.ToImage`, as those above do, gets a tensor at once; any other
    gets a PIL image, as the transforms of torchvision's tutorials expect.
    """
    steps = getattr(transform, "transforms", ())
    if steps and isinstance(steps[0], v2.ToImage):
        return transform(tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)))
    return transform(Image.fromarray(pixels))


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A vector that is copied to a device once: each copy would wait for what computes there."""
    return torch.tensor(values, device=device)


_IN_CACHE = 8  # images whose floats stay in a processor's cache between two operations


@dataclass(frozen=True)
class Finish:
    """What is left to do with bytes: conversion to floats, colours and normalisation, per batch."""

    normalise: v2.Normalize
    jitter: ColorJitter | None

    def draw(self) -> list[float]:
        """What the colours of one image depend on, drawn at random."""
        return self.jitter.draw() if self.jitter else []

    def __call__(self, images: Tensor, draws: Tensor, floats: Tensor) -> Tensor:
        """Fill `floats` (N, 3, H, W) from bytes (N, H, W, 3), on any device."""
        mean, std = (tuple(one) for one in (self.normalise.mean, self.normalise.std))
        means, stds = (constant(one, floats.device) for one in (mean, std))
        pixels = images.permute(0, 3, 1, 2)
        if self.jitter is None:
            floats.copy_(pixels).mul_(1 / 255)
            return floats.sub_(means[:, None, None]).div_(stds[:, None, None])
        at_once = _IN_CACHE if floats.is_cpu else len(floats)
        scratch = torch.empty_like(floats[:at_once])
        for some in (slice(at, at + at_once) for at in range(0, len(floats), at_once)):
            changed = floats[some]
            values = scratch[: len(changed)].copy_(pixels[some])
            matrix, white = colour_matrix(draws[some], values.mean((2, 3)) / 255)
            matrix, offset = matrix / (255 * stds[:, None]), (white[:, None] - means) / stds
            _mix_channels(values, matrix, offset, changed)
            for channel, (middle, width) in enumerate(zip(mean, std, strict=True)):
                changed[:, channel].clamp_((0 - middle) / width, (1 - middle) / width)
        return floats


def _mix_channels(images: Tensor, matrix: Tensor, offset: Tensor, mixed: Tensor) -> None:
    """Multiply the pixels of each image (N, 3, H, W) by its matrix (N, 3, 3); add (N, 3)."""
    if mixed.is_contiguous():
        flat, rows = (one.view(*one.shape[:2], -1) for one in (mixed, images))
        torch.baddbmm(offset[..., None], matrix, rows, out=flat)
    else:
        flat, rows = (one.permute(0, 2, 3, 1).flatten(1, 2) for one in (mixed, images))
        torch.baddbmm(offset[:, None], rows, matrix.mT, out=flat)


def split_transform(transform: Callable) -> tuple[Callable, Finish | None]:
    """The part of a transform for one image at a time, and the part for a batch at once.

    The second is the conversion, colours and normalisation with which the transforms above end;
    None for a transform that ends otherwise.
    """
    steps = getattr(transform, "transforms", None)
    match steps:
        case [v2.ToImage(), *first, v2.ToDtype(dtype=torch.float32, scale=True), v2.Normalize()]:
            jitter = None
        case [
            v2.ToImage(),
            *first,
            v2.ToDtype(dtype=torch.float32, scale=True),
            ColorJitter() as jitter,
            v2.Normalize(),
        ]:
            pass
        case _:
            return transform, None
    if any(isinstance(step, v2.ToDtype) for step in first):
        return transform, None
    return v2.Compose([steps[0], *first]), Finish(steps[-1], jitter)
