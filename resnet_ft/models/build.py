"""build_model: a ResNet, pretrained where possible, with a head for your number of classes."""

import warnings
from collections.abc import Collection
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
from resnet_ft.files import user_path
from resnet_ft.reading import check_finite, in_words, read_saved

StateDict = dict[str, Tensor]
TIMM = "timm/"
_TIMEOUT_S = 15


def architectures() -> list[str]:
    """The models that `build_model` knows from torchvision: ResNet, ResNeXt and Wide ResNet."""
    # torchvision's quantized models have names of their own and cannot be trained.
    return [name for name in models.list_models(module=models) if "resne" in name]


def check_architecture(arch: str) -> None:
    """Raise ParameterError for an `arch` that `build_model` does not know."""
    if not arch.startswith(TIMM):
        if arch not in architectures():
            raise ParameterError(
                f"arch={arch!r} is unknown. Choose one of {', '.join(architectures())}."
            )
        return
    try:
        import timm
    except ImportError as error:
        raise ParameterError(f"arch={arch!r} needs timm: pip install timm") from error
    name = arch.removeprefix(TIMM)
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
    content: object = None
    try:
        if weights in ("DEFAULT", "auto"):
            content = _pretrained_weights(arch)
        elif weights is not None:
            content = _read_weights(user_path(weights))
    except WeightsError as error:
        if weights != "auto":
            raise
        warnings.warn(
            f"The model starts from RANDOM weights. {error} It has to learn everything from your "
            "images: with fewer than thousands it will be far worse than a pretrained model.",
            stacklevel=2,
        )
    model: Any = _new_model(arch, num_classes)
    if content is not None:
        _load(model, content, weights)
    model.arch, model.pretrained = arch, content is not None
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
    if not arch.startswith(TIMM):
        return models.get_model(arch, weights=None, num_classes=num_classes)
    import timm

    name = arch.removeprefix(TIMM)
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes)


def _pretrained_weights(arch: str) -> StateDict:
    """The best weights of torchvision or timm, from its cache or downloaded."""
    remedy = "give a weights file of your own"
    try:
        if arch.startswith(TIMM):
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
    except ParameterError:
        raise
    except Exception as error:  # a damaged file in the cache can fail in any way
        raise WeightsError(
            f"The pretrained weights of {arch} could not be loaded ({in_words(error)}). Connect "
            f"to the internet; or {remedy}; or start from random weights with weights=None."
        ) from error


def _read_weights(path: Path) -> object:
    """The content of a .pth or .safetensors file."""
    if not path.is_file():
        raise WeightsError(
            f'There is no weights file {path}. Check the path, or use weights="auto".'
        )
    try:
        with path.open("rb") as file:
            return load_file(path) if path.suffix == ".safetensors" else read_saved(file)
    except Exception as error:  # a file from anywhere can fail in any way inside the unpickler
        raise WeightsError(
            f"{path} could not be read as weights ({in_words(error)}). It should be a .safetensors "
            "file or a state dict saved with torch.save(model.state_dict(), path)."
        ) from error


def _find_network(content: object, expected: list[str], source: str | Path | None) -> StateDict:
    """The state dict with the `expected` names in what a file holds: at the top or one level below.

    Scripts put it beside other things, under a name of their own; wrappers such as torch.compile
    and Lightning put "_orig_mod." or "model." before all of its names.
    """
    places = {**(content if isinstance(content, dict) else {}), "": content}
    found: dict[tuple[str, str], StateDict] = {}  # by place and prefix
    seen: list[str] = []
    left_out: dict[tuple[str, str], list[str]] = {}
    for place, mapping in places.items():
        inside = mapping.items() if isinstance(mapping, dict) else ()
        tensors = {name: one for name, one in inside if torch.is_tensor(one) and name == str(name)}
        seen = max(seen, list(tensors), key=len)
        for prefix in [name[: -len(expected[0])] for name in tensors if name.endswith(expected[0])]:
            if all(f"{prefix}{name}" in tensors for name in expected):
                key = str(place), prefix
                found[key] = {
                    name.removeprefix(prefix): one
                    for name, one in tensors.items()
                    if name.startswith(prefix)
                }
                left_out[key] = [name for name in tensors if not name.startswith(prefix)]
    if not seen:
        raise WeightsError(f"{source} holds no state dict: save model.state_dict(), not the model.")
    if not found:
        missing = len(set(expected) - set(seen))
        raise WeightsError(
            f"{source} is of another architecture: it has {_some(seen)}, but {missing} of the "
            f"model's {_some(expected)} are missing. Give the arch of these weights."
        )
    usual = [key for key in found if key[0] in ("", "state_dict", "model")]
    taken = usual[0] if usual else next(iter(found))
    names = ", ".join(f"{place} {prefix}".strip() or "the file itself" for place, prefix in found)
    if len(found) > 1 and len(usual) != 1:
        raise WeightsError(
            f"{source} holds {len(found)} networks that fit: {names}. Save the state dict of "
            "one of them alone."
        )
    if len(found) > 1:
        warnings.warn(f"{source} holds the networks {names}; {taken[0]} is used.", stacklevel=4)
    if rest := left_out[taken]:
        warnings.warn(f"{source}: {_some(rest)} are of no use for the model.", stacklevel=4)
    return found[taken]


def _some(names: Collection[str]) -> str:
    """The number of tensors, and the first of their names."""
    first = ", ".join(list(names)[:3])
    return f"{len(names)} tensors ({first}{', ...' if len(names) > 3 else ''})"


def _load(model: nn.Module, content: object, source: str | Path | None) -> None:
    """Fill a model; its head only where names and shapes are the same."""
    own, of_head = model.state_dict(), f"{head_of(model)[0]}."
    needed = [name for name in own if not name.startswith(of_head)]
    # Networks of before 2018 did not count batches; load_state_dict does without.
    expected = [name for name in needed if not name.endswith("num_batches_tracked")]
    tensors = _find_network(content, expected, source)
    heads = [
        {name: one.shape for name, one in all_of_them.items() if name.startswith(of_head)}
        for all_of_them in (own, tensors)
    ]
    if heads[0] != heads[1]:  # the head is new
        tensors = {name: one for name, one in tensors.items() if name not in heads[1]}
        if other := heads[1].keys() - heads[0]:
            warnings.warn(
                f"The head in {source} has other layers, {_some(sorted(other))}. It is left out: "
                "the head of the model is new.",
                stacklevel=3,
            )
    different = [name for name in tensors if name in own and tensors[name].shape != own[name].shape]
    unknown = [name for name in tensors if name not in own]
    if different or unknown:
        raise WeightsError(
            f"{source} is of another architecture: {len(different)} tensors have another shape and "
            f"{len(unknown)} have no place ({', '.join([*different, *unknown][:3])}, ...). Give "
            "the arch of these weights."
        )
    try:
        check_finite(tensors)
        model.load_state_dict(tensors, strict=False)
    except (RuntimeError, ValueError) as error:
        raise WeightsError(
            f"{source} does not fit the model ({in_words(error)}). Take other weights."
        ) from error
