"""Pixels for training, varied, and pixels for evaluation, always the same."""

from collections.abc import Sequence

import torch
from torchvision.transforms import v2

from resnet_ft.errors import ParameterError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The smallest share of the image that a random crop keeps, and what else happens to it.
_STRENGTHS = {
    "light": (0.6, ()),
    "medium": (0.35, (v2.ColorJitter(0.2, 0.2, 0.2, 0.02),)),
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
            v2.RandomResizedCrop(image_size, scale=(smallest_crop, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            *more,
            *_to_normalised_tensor(mean, std),
        ]
    )


def eval_transform(
    image_size: int = 224,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> v2.Compose:
    """Resize and centre crop: an RGB image to a normalised (3, size, size) float tensor.

    The short side becomes 256/224 of `image_size` before the crop, as in torchvision's references.
    """
    resize = v2.Resize(round(image_size * 256 / 224), antialias=True)
    return v2.Compose([resize, v2.CenterCrop(image_size), *_to_normalised_tensor(mean, std)])


def _to_normalised_tensor(mean: Sequence[float], std: Sequence[float]) -> list[v2.Transform]:
    to_float = v2.ToDtype(torch.float32, scale=True)
    return [v2.ToImage(), to_float, v2.Normalize(mean=list(mean), std=list(std))]


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
