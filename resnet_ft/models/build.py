"""A ResNet, pretrained where possible, with a head for one's own number of classes."""

from pathlib import Path

from torch import nn
from torchvision import models

from resnet_ft.errors import ParameterError, WeightsError
from resnet_ft.models.weights import (
    StateDict,
    load_weights,
    pretrained_state_dict,
    read_state_dict,
    warn_of_random_weights,
)

_TIMM = "timm/"


def architectures() -> list[str]:
    """The networks that `build_model` knows from torchvision: ResNet, ResNeXt and Wide ResNet."""
    # torchvision's quantized models have names of their own and cannot be trained.
    return [name for name in models.list_models(module=models) if "resne" in name]


def build_model(
    arch: str = "resnet101",
    num_classes: int | None = None,
    *,
    weights: str | Path | None = "DEFAULT",
) -> nn.Module:
    """A network that maps images (N, 3, H, W) to logits (N, num_classes), with `model.arch` set.

    `arch` is one of torchvision's ResNets ("resnet18" to "resnet152", ResNeXt, Wide ResNet) or,
    where timm is installed, "timm/<name>". `weights`: "DEFAULT" takes the library's best pretrained
    ones; "auto" does so too, but where they are neither cached nor to be downloaded it warns and
    starts from random weights; None starts from random weights; a path reads a .pth or .safetensors
    state dict. The head is new unless it comes with the weights in the right size.
    `model.pretrained` says whether weights were loaded.
    Raises ParameterError for an unknown `arch` or a missing `num_classes`, WeightsError for weights
    that cannot be had or do not fit.
    """
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ParameterError(
            f"num_classes={num_classes} is not a number of classes. "
            'Give len(dataloaders["train"].dataset.classes).'
        )
    if not arch.startswith(_TIMM) and arch not in architectures():
        raise ParameterError(
            f"arch={arch!r} is unknown. Choose one of {', '.join(architectures())}."
        )
    state_dict = _state_dict(arch, weights)
    model, head = _network(arch, num_classes)
    if state_dict is not None:
        load_weights(model, state_dict, head, weights)
    model.arch, model.pretrained = arch, state_dict is not None
    return model


def _network(arch: str, num_classes: int, *, pretrained: bool = False) -> tuple[nn.Module, str]:
    """A network and the name of its head; only timm's comes with its weights here."""
    if not arch.startswith(_TIMM):
        return models.get_model(arch, weights=None, num_classes=num_classes), "fc"
    try:
        import timm
    except ImportError as error:
        raise ParameterError(f"arch={arch!r} needs timm: pip install timm") from error
    name = arch.removeprefix(_TIMM)
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name[:8]}*")[:5]) or "see timm.list_models()"
        raise ParameterError(f"timm has no model {name!r}. Similar ones: {close}.")
    model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
    return model, model.pretrained_cfg["classifier"]


def _state_dict(arch: str, weights: str | Path | None) -> StateDict | None:
    """The tensors to start from, or None for random ones."""
    if weights is None:
        return None
    if weights not in ("DEFAULT", "auto"):
        return read_state_dict(weights)
    try:
        return _timm_state_dict(arch) if arch.startswith(_TIMM) else pretrained_state_dict(arch)
    except WeightsError as error:
        if weights == "DEFAULT":
            raise
        warn_of_random_weights(error)
        return None


def _timm_state_dict(arch: str) -> StateDict:
    try:
        return _network(arch, num_classes=2, pretrained=True)[0].state_dict()
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"The pretrained weights of {arch} could not be loaded ({error}). Connect to "
            "the internet, give a weights file of your own, or start from random weights with "
            "weights=None."
        ) from error
