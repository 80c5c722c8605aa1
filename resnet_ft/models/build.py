"""A ResNet, pretrained where possible, with a head for one's own number of classes."""

import pickle
import textwrap
import urllib.request
import warnings
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum, get_model_weights

from resnet_ft.errors import ParameterError, WeightsError

StateDict = dict[str, Tensor]
_TIMEOUT_S = 15

_RANDOM_WEIGHTS = """
======================================================================
The network starts from RANDOM weights, not from pretrained ones:
{reason}
It has to learn everything from your images. With fewer than thousands
of them it will be far worse than a pretrained network.
======================================================================"""


def pretrained_state_dict(arch: str) -> StateDict:
    """torchvision's best ImageNet weights for `arch`: from its cache, else downloaded.

    Raises WeightsError, with what to do, where neither works.
    """
    weights = get_model_weights(arch).DEFAULT
    file = _cache_file(weights)
    try:
        if not file.exists():
            # torch.hub waits without end for a server that does not answer.
            urllib.request.urlopen(weights.url, timeout=_TIMEOUT_S).close()
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"The pretrained weights of {arch} could not be loaded ({error}). Connect to the "
            f"internet; or download {weights.url} elsewhere and put it at {file} in place of what "
            "is there (the variable TORCH_HOME moves that folder); or start from random weights "
            "with weights=None."
        ) from error


def _cache_file(weights: WeightsEnum) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name


def read_state_dict(path: str | Path) -> StateDict:
    """The tensors of a .pth or .safetensors file, on the CPU.

    Takes a bare state dict, or one below "state_dict" or "model" as training scripts save it.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f'There is no weights file {path}. Check the path, or use weights="auto".'
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from anywhere can fail in any way inside of the unpickler
        raise WeightsError(
            f"{path} could not be read as weights ({error}). It should be a .safetensors file or a "
            "state dict saved with torch.save(model.state_dict(), path)."
        ) from error
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise WeightsError(f"{path} holds no state dict: save model.state_dict(), not the model.")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def load_weights(model: nn.Module, state_dict: StateDict, head: str, source: str | Path) -> None:
    """Fill a network; its head (`head` is that layer's name) only where the shapes are the same."""
    own = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in state_dict.items()
        if not name.startswith(f"{head}.") or own.get(name, tensor).shape == tensor.shape
    }
    try:
        missing, unexpected = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{source} does not fit the network: {error}") from error
    missing = [name for name in missing if not name.startswith(f"{head}.")]
    if missing or unexpected:
        wrong = ", ".join([*missing, *unexpected][:3])
        raise WeightsError(
            f"{source} is of another architecture: {len(missing)} tensors are missing and "
            f"{len(unexpected)} have no place ({wrong}, ...). Give the arch of these weights."
        )


def warn_of_random_weights(reason: object) -> None:
    """Say that no pretrained weights were found, in a way that nobody overlooks."""
    text = textwrap.fill(str(reason), 70, break_long_words=False)
    warnings.warn(_RANDOM_WEIGHTS.format(reason=text), stacklevel=4)  # at the call of build_model


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
