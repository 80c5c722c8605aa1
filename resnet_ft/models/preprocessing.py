"""preprocessing_of: how the images of a network were prepared when its weights were trained."""

from dataclasses import replace
from pathlib import Path

from torchvision.models import get_model_weights

from resnet_ft.data.transforms import Preprocessing, preprocessing_in
from resnet_ft.errors import CheckpointError
from resnet_ft.models.build import TIMM, check_architecture
from resnet_ft.models.checkpoint import load_checkpoint


def preprocessing_of(
    arch: str = "resnet101",
    weights: str | Path | None = "DEFAULT",
    *,
    image_size: int | None = None,
) -> Preprocessing:
    """How to prepare images for a network of `build_model`, without a download and without a model.

    It is what torchvision's `weights.transforms()` or timm's `pretrained_cfg` says of the weights
    that "DEFAULT" and "auto" load. A checkpoint of this library knows its own; for a file of bare
    weights, and for random weights, it is that of the architecture. `image_size` replaces the size.
    Raises ParameterError for an unknown `arch`.
    """
    check_architecture(arch)
    found = _of_file(weights) if weights not in ("DEFAULT", "auto", None) else None
    if found is None:
        is_of_timm = arch.startswith(TIMM)
        found = _of_timm(arch.removeprefix(TIMM)) if is_of_timm else _of_torchvision(arch)
    return found if image_size is None else replace(found, image_size=image_size)


def _of_torchvision(arch: str) -> Preprocessing:
    chosen = get_model_weights(arch).DEFAULT.transforms()
    (size,), (side,) = chosen.crop_size, chosen.resize_size
    return Preprocessing(size, chosen.mean, chosen.std, chosen.interpolation.value, size / side)


def _of_timm(name: str) -> Preprocessing:
    import timm

    chosen = timm.get_pretrained_cfg(name)
    if chosen is None:  # there are no weights for it
        return Preprocessing()
    interpolation = "bicubic" if chosen.interpolation == "bicubic" else "bilinear"
    size = chosen.input_size[-1]
    return Preprocessing(size, chosen.mean, chosen.std, interpolation, chosen.crop_pct)


def _of_file(file: str | Path) -> Preprocessing | None:
    try:
        return preprocessing_in(load_checkpoint(file).transform())
    except CheckpointError:  # bare weights, or another transform
        return None
