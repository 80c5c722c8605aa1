"""Pretrained weights: downloaded by torchvision or timm, or read from a file of one's own."""

import pickle
import textwrap
import urllib.request
import warnings
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from resnet_ft.errors import WeightsError

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
