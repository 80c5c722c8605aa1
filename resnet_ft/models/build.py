"""build_model: a ResNet, pretrained where possible, with a head for your number of classes."""

import pickle
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import requests
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models import ResNet, get_model_weights

from resnet_ft.errors import ParameterError, WeightsError

StateDict = dict[str, Tensor]
_TIMM = "timm/"
_TIMEOUT_S = 15


def architectures() -> list[str]:
    """The models that `build_model` knows from torchvision: ResNet, ResNeXt and Wide ResNet."""
    # torchvision's quantized models have names of their own and cannot be trained.
    return [name for name in models.list_models(module=models) if "resne" in name]


def check_architecture(arch: str) -> None:
    """Raise ParameterError for an `arch` that `build_model` does not know."""
    if not arch.startswith(_TIMM):
        if arch not in architectures():
            raise ParameterError(
                f"arch={arch!r} is unknown. Choose one of {', '.join(architectures())}."
            )
        return
    try:
        import timm
    except ImportError as error:
        raise ParameterError(f"arch={arch!r} needs timm: pip install timm") from error
    name = arch.removeprefix(_TIMM)
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name[:8]}*")[:5]) or "see timm.list_models()"
        raise ParameterError(f"timm has no model {name!r}. Similar ones: {close}.")


def build_model(
    arch: str = "resnet101",
    num_classes: int | None = None,
    *,
    weights: str | Path | None = "DEFAULT",
) -> nn.Module:
    """A model that maps images (N, 3, H, W) to logits (N, num_classes), with `model.arch` set.

    `arch` is one of torchvision's ResNets ("resnet18" to "resnet152", ResNeXt, Wide ResNet) or,
    where timm is installed, "timm/<name>". `weights`: "DEFAULT" takes the library's best pretrained
    ones; "auto" does too, or warns and starts from random weights where they cannot be loaded; None
    starts from random weights; a path reads a .pth or .safetensors state dict. The head is new
    unless the weights have it in the right size. `model.pretrained` says whether weights were
    loaded. Raises ParameterError for an unknown `arch`
    or no `num_classes`, WeightsError for weights that cannot be loaded or do not fit.
    """
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ParameterError(
            f"num_classes={num_classes} is not a number of classes. "
            'Give len(dataloaders["train"].dataset.classes).'
        )
    check_architecture(arch)
    state_dict = None
    try:
        if weights in ("DEFAULT", "auto"):
            state_dict = _pretrained_weights(arch)
        elif weights is not None:
            state_dict = _read_state_dict(Path(weights))
    except WeightsError as error:
        if weights != "auto":
            raise
        warnings.warn(
            f"The model starts from RANDOM weights. {error} It has to learn everything from your "
            "images: with fewer than thousands it will be far worse than a pretrained model.",
            stacklevel=2,
        )
    model: Any = _new_model(arch, num_classes)
    if state_dict is not None:
        _load(model, state_dict, weights)
    model.arch, model.pretrained = arch, state_dict is not None
    return model


def head_of(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the head, which turns features into logits and is new for new classes.

    "fc" of a torchvision ResNet, the classifier of a timm model, and the last Linear layer of any
    other. Raises ParameterError for a model without one.
    """
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    name = layers[-1] if layers else ""
    if isinstance(model, ResNet):
        name = "fc"
    elif isinstance(classifier := getattr(model, "pretrained_cfg", {}).get("classifier"), str):
        name = classifier
    if not name:
        raise ParameterError(
            f"{type(model).__name__} has no Linear layer at its end, so no head could be "
            "trained alone. Train the whole model with train_model."
        )
    return name, model.get_submodule(name)


def num_outputs(model: nn.Module) -> int | None:
    """The number of logits, by the last Linear layer of the head; None where there is none."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return layers[-1].out_features if layers else None


def _new_model(arch: str, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """A model with random weights; timm can load its own."""
    if not arch.startswith(_TIMM):
        return models.get_model(arch, weights=None, num_classes=num_classes)
    import timm

    name = arch.removeprefix(_TIMM)
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes)


def _pretrained_weights(arch: str) -> StateDict:
    """The best weights of torchvision or timm, from its cache or downloaded."""
    remedy = "give a weights file of your own"
    try:
        if arch.startswith(_TIMM):
            return _new_model(arch, num_classes=2, pretrained=True).state_dict()
        weights = get_model_weights(arch).DEFAULT
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name
        remedy = (
            f"download {weights.url} elsewhere and save it as {file} (the variable TORCH_HOME "
            "moves that folder)"
        )
        if not file.exists():  # torch.hub waits forever for a server that does not answer
            requests.get(weights.url, stream=True, timeout=_TIMEOUT_S).close()
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"The pretrained weights of {arch} could not be loaded ({error}). Connect to the "
            f"internet; or {remedy}; or start from random weights with weights=None."
        ) from error


def _read_state_dict(path: Path) -> StateDict:
    """The tensors of a .pth or .safetensors file; scripts nest them: "state_dict" or "model"."""
    if not path.is_file():
        raise WeightsError(
            f'There is no weights file {path}. Check the path, or use weights="auto".'
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from anywhere can fail in any way inside the unpickler
        raise WeightsError(
            f"{path} could not be read as weights ({error}). It should be a .safetensors file or a "
            "state dict saved with torch.save(model.state_dict(), path)."
        ) from error
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise WeightsError(f"{path} holds no state dict: save model.state_dict(), not the model.")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _load(model: nn.Module, state_dict: StateDict, source: str | Path | None) -> None:
    """Fill a model; its head only where the shapes are the same."""
    own, of_head = model.state_dict(), f"{head_of(model)[0]}."
    fitting = {
        name: tensor
        for name, tensor in state_dict.items()
        if not name.startswith(of_head) or own.get(name, tensor).shape == tensor.shape
    }
    try:
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{source} does not fit the model: {error}") from error
    missing = [name for name in missing if not name.startswith(of_head)]
    if missing or unexpected:
        wrong = ", ".join([*missing, *unexpected][:3])
        raise WeightsError(
            f"{source} is of another architecture: {len(missing)} tensors are missing and "
            f"{len(unexpected)} have no place ({wrong}, ...). Give the arch of these weights."
        )
