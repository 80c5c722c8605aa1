"""What a run is: all that changes its numbers, as plain data for config.json.

A place, a machine, a number of workers or of micro-batches is no part of it.
"""

import enum
import functools
from collections.abc import Mapping, Sized
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from resnet_ft.data.batches import EpochBatchSampler
from resnet_ft.data.dataset import SeededDataset
from resnet_ft.data.mixing import MixedLoader
from resnet_ft.files import fingerprint
from resnet_ft.training.schedule import describe_scheduler
from resnet_ft.training.state import TrainingState, whole_model

UNSURE = "?"  # marks what may be the same although it reads differently
_LIBRARIES = ("torch.", "torchvision.", "resnet_ft.")
_DEPTH = 8
_KERNELS = {"foreach", "fused"}  # how an optimizer computes its steps, which is up to the device


def describe_training(state: TrainingState) -> dict[str, object]:
    """What `train_model` was called with."""
    model, loader = whole_model(state.model), state.dataloaders["train"]
    dataset, scheduler = loader.dataset, state.scheduler
    per_step = getattr(scheduler, "scheduler", None)
    groups, rates = state.optimizer.param_groups, initial_rates(state.optimizer)
    decays = [group.get("weight_decay", 0) for group in groups]
    return {
        "arch": getattr(model, "arch", type(model).__name__),
        "pretrained": getattr(model, "pretrained", None),
        "classes": getattr(dataset, "classes", None),
        "images": {split: _length(one.dataset) for split, one in state.dataloaders.items()},
        "data_fingerprint": getattr(dataset, "fingerprint", None),
        "preprocessing": getattr(dataset, "preprocessing", None),
        "train_transform": described(getattr(dataset, "transform", None)),
        "val_transform": described(getattr(state.dataloaders["val"].dataset, "transform", None)),
        "sampling": _sampling(loader),
        "batch_size": getattr(loader.batch_sampler, "batch_size", loader.batch_size),
        "criterion": getattr(state.criterion, "__qualname__", None) or repr(state.criterion),
        "criterion_settings": described(state.criterion),
        "optimizer": type(state.optimizer).__name__,
        "optimizer_options": state.optimizer.defaults
        | {"lr": max(rates), "weight_decay": max(decays)}
        | dict.fromkeys(_KERNELS & state.optimizer.defaults.keys()),
        "optimizer_groups": {"learning_rates": rates, "weight_decays": decays},
        "scheduler": type(scheduler).__name__ if scheduler and not per_step else None,
        "scheduler_per_step": type(per_step).__name__ if per_step else None,
        "scheduler_settings": describe_scheduler(per_step or scheduler),
        "metrics": list(state.metrics),
        "clip_grad_norm": state.clip_grad_norm,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "num_epochs": state.num_epochs,
    }


def described(value: object, depth: int = 0) -> str:  # noqa: PLR0911
    """A value in words that are equal for equal values: `RandomCrop(size=(64, 64), padding=None)`.

    Tensors and arrays have their fingerprint. What is marked with "?" cannot be compared for sure:
    functions without a name, and objects of one's own, which may count or remember.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        return f"array({array.shape}, {fingerprint([array.dtype, array.tolist()])})"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, enum.Enum | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, functools.partial):
        given = {"function": value.func, "args": value.args, **value.keywords}
        return f"partial({_listed(given, depth)})"
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        name = f"{value.__module__}.{value.__qualname__}"
        return f"{UNSURE}{name}" if "<lambda>" in name else name
    if isinstance(value, Mapping):
        return f"{{{_listed({str(name): one for name, one in value.items()}, depth)}}}"
    if isinstance(value, list | tuple | set | frozenset):
        inside = ", ".join(described(one, depth + 1) for one in value)
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    is_known = f"{type(value).__module__}.".startswith(_LIBRARIES) and hasattr(value, "__dict__")
    own = "" if is_known else UNSURE
    settings = {
        name: one
        for name, one in getattr(value, "__dict__", {}).items()
        if not name.startswith("_") and name != "training"
    }
    if isinstance(value, nn.Module):
        settings |= value.state_dict()
        settings |= dict(value.named_children())
    inside = _listed(settings, depth) if depth < _DEPTH else UNSURE
    return f"{own}{type(value).__name__}({inside})"


def _listed(settings: Mapping[str, object], depth: int) -> str:
    return ", ".join(f"{name}={described(one, depth + 1)}" for name, one in settings.items())


def _sampling(loader: DataLoader) -> str:
    """Which images a batch has, and what they are mixed with."""
    sampler, dataset = loader.batch_sampler, loader.dataset
    parts = [type(sampler).__name__]
    if isinstance(sampler, EpochBatchSampler):
        parts = [f"{parts[0]}(shuffle={sampler.shuffle}, seed={sampler.seed})"]
    elif inner := getattr(sampler, "sampler", None):
        parts = [type(inner).__name__]
    if isinstance(dataset, SeededDataset):
        parts.append(f"augmentation with seed {dataset.seed}")
    if isinstance(loader, MixedLoader):
        parts.append(f"{described(loader.mix)} with seed {loader.seed}")
    return ", ".join(parts)


def _length(dataset: object) -> int | None:
    return len(dataset) if isinstance(dataset, Sized) else None


_RATES: WeakKeyDictionary[Optimizer, tuple[list[float], list[float]]] = WeakKeyDictionary()


def initial_rates(optimizer: Optimizer) -> list[float]:
    """The learning rates of an optimizer's groups as training began with them."""
    now = [float(group["lr"]) for group in optimizer.param_groups]
    first, last = _RATES.get(optimizer, ([], None))
    if now == last:  # a run has lowered them, and the same call resumes it
        return first
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def remember_rates(optimizer: Optimizer, first: list[float]) -> None:
    """Note, after training, which learning rates it began with."""
    _RATES[optimizer] = first, [float(group["lr"]) for group in optimizer.param_groups]
