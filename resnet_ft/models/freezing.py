"""Which layers train and which are frozen, and the modes that follow from it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_ft import distributed, engine
from resnet_ft.errors import ParameterError, TrainingError


def freeze(model: nn.Module, until: str = "layer4") -> None:
    """Freeze every parameter before the layer `until`, which trains with all that comes after it.

    The order is that of `model.named_parameters()`. In a ResNet, "layer4" trains the last stage and
    the head, "fc" the head alone. A dotted name ("layer4.1") works too. Batch normalisation in the
    frozen part is frozen as well (see `train_mode`). Raises ParameterError for an unknown layer.
    """
    names = [name for name, _ in model.named_parameters()]
    first = next((i for i, name in enumerate(names) if f"{name}.".startswith(f"{until}.")), None)
    if first is None:
        layers = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
        raise ParameterError(f"This model has no layer until={until!r}. Choose one of {layers}.")
    if first and not getattr(model, "pretrained", True):
        warnings.warn(
            "The frozen layers have random weights and will never learn anything. Train all "
            "layers, or build the model with pretrained weights.",
            stacklevel=2,
        )
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad = i >= first


def unfreeze(model: nn.Module) -> None:
    """Let every parameter train."""
    model.requires_grad_(True)


def freeze_batchnorm(model: nn.Module) -> None:
    """Freeze weights and statistics of every BatchNorm layer, also while the other layers train.

    Statistics of batches from a few hundred images are worse than those that came with the weights.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(False)


def train_mode(model: nn.Module) -> None:
    """Training mode for what trains, evaluation mode for what is frozen.

    A module whose parameters are all frozen keeps its BatchNorm statistics and has no dropout.
    """
    model.train()
    for module in model.modules():
        trainable = [parameter.requires_grad for parameter in module.parameters()]
        if trainable and not any(trainable):
            module.eval()


@contextmanager
def kept_trainable(model: nn.Module) -> Iterator[None]:
    """Let the block freeze layers; afterwards what trained before trains again."""
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for parameter, trains in trainable.items():
            parameter.requires_grad = trains


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every module is in its previous mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The number of parameters that train, and of all."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


@contextmanager
def synchronised_batchnorm(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers that learn compute over the images of all processes, within the block.

    Parameters and statistics stay those of the model. Raises TrainingError on a CPU, for which
    PyTorch has no such layers.
    """
    learning = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and any(p.requires_grad for p in module.parameters())
    }
    if distributed.count() == 1 or not learning:
        yield
        return
    if engine.device().type == "cpu":
        raise TrainingError(
            "Batch normalisation that learns needs GPUs to train in several processes. Call "
            "freeze_batchnorm(model), as fine_tune does by default, or train in one process."
        )
    for name, module in learning.items():
        model.set_submodule(name, nn.SyncBatchNorm.convert_sync_batchnorm(module))
    try:
        yield
    finally:
        for name, module in learning.items():  # with the same tensors inside
            model.set_submodule(name, module)
