"""Pixels for training, varied, and pixels for evaluation, always the same."""

from collections.abc import Callable, Sequence
from functools import partial

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
_STRENGTHS = {
    "light": (0.6, ()),
    "medium": (0.35, (v2.ColorJitter(0.2, 0.2, 0.2),)),
    "strong": (0.2, (v2.TrivialAugmentWide(),)),
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
    return v2.Compose(
        [
            v2.ToImage(),
            _RandomResizedCrop(image_size, scale=(smallest_crop, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            *more,
            *_normalised(mean, std),
        ]
    )


def eval_transform(
    image_size: int = 224,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> v2.Compose:
    """Resize and centre crop: an RGB image to a normalised (3, size, size) float tensor.

    The short side becomes `side_before_crop(image_size)` pixels first.
    """
    resize = v2.Resize(side_before_crop(image_size), antialias=True)
    crop = v2.CenterCrop(image_size)
    return v2.Compose([v2.ToImage(), resize, crop, *_normalised(mean, std)])


def side_before_crop(image_size: int) -> int:
    """The short side that `eval_transform` crops from: 256/224, as in torchvision's references."""
    return round(image_size * 256 / 224)


def _normalised(mean: Sequence[float], std: Sequence[float]) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean=list(mean), std=list(std))]


def prepare(pixels: np.ndarray, transform: Callable) -> object:
    """What a transform makes of an RGB image, a uint8 array of shape (H, W, 3).

    A transform that turns its image into a tensor first, as those above do, gets a tensor at once;
    any other gets a PIL image, as the transforms of torchvision's tutorials expect.
    """
    steps = getattr(transform, "transforms", ())
    if steps and isinstance(steps[0], v2.ToImage):
        return transform(tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)))
    return transform(Image.fromarray(pixels))


def split_transform(transform: Callable) -> tuple[Callable, Callable | None]:
    """What a transform does to one image at a time, and what it can as well do to a whole batch.

    The second, which takes bytes (N, H, W, 3) to floats (N, 3, H, W), is what `train_transform` and
    `eval_transform` end with; None for a transform that ends in another way.
    """
    first, *rest = getattr(transform, "transforms", None) or [None]
    match rest[-2:]:
        case [v2.ToDtype(dtype=torch.float32, scale=True), v2.Normalize() as normalise]:
            converted = any(isinstance(step, v2.ToDtype) for step in rest[:-2])
            if isinstance(first, v2.ToImage) and not converted:
                return v2.Compose([first, *rest[:-2]]), partial(_finish, normalise)
    return transform, None


def _finish(normalise: v2.Normalize, images: Tensor, empty: Callable[..., Tensor]) -> Tensor:
    count, height, width, channels = images.shape
    floats = empty(count, channels, height, width)
    floats.copy_(images.permute(0, 3, 1, 2)).mul_(1 / 255)
    return v2.functional.normalize(floats, normalise.mean, normalise.std, inplace=True)


class _RandomResizedCrop(v2.RandomResizedCrop):
    """The same for one image, in half the time: torch is quick at bytes that lie in one piece."""

    def forward(self, image: Tensor) -> Tensor:
        top, left, height, width = RandomResizedCrop.get_params(image, self.scale, self.ratio)
        crop = v2.functional.crop(image, top, left, height, width)
        crop = crop[None].contiguous(memory_format=torch.channels_last)[0]
        return v2.functional.resize(crop, self.size, antialias=True)


def describe_preprocessing(transform: object) -> dict[str, object] | None:
    """What `eval_transform` has to be called with to give this transform, as plain data.

    None for a transform of another kind, which plain data cannot describe.
    """
    steps = getattr(transform, "transforms", ())
    if not steps or not isinstance(steps[-1], v2.Normalize):
        return None
    crops = [step for step in steps if isinstance(step, v2.CenterCrop)]
    if len(crops) != 1:
        return None
    described = {
        "image_size": crops[0].size[0],
        "mean": [float(value) for value in steps[-1].mean],
        "std": [float(value) for value in steps[-1].std],
    }
    return described if repr(eval_transform(**described)) == repr(transform) else None


def side_for(transform: object) -> int | None:
    """The short side that photographs for this evaluation transform are decoded to.

    None for a transform that is not `eval_transform`'s, which says nothing of a size.
    """
    described = describe_preprocessing(transform)
    return side_before_crop(described["image_size"]) if described else None
