"""Batch normalisation that learns, in several processes: it has to see the whole batch."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_ft import engine, processes
from resnet_ft.errors import TrainingError


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers that learn compute over all processes' images, as long as this lasts.

    The layers of the model keep their parameters and statistics. Raises TrainingError on a
    processor, for which PyTorch has no such layers.
    """
    learning = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and any(parameter.requires_grad for parameter in module.parameters())
    }
    if processes.count() == 1 or not learning:
        yield
        return
    if engine.device().type == "cpu":
        raise TrainingError(
            "Batch normalisation that learns needs GPUs to be trained by several processes. Call "
            "freeze_batchnorm(model), as fine_tune does by default, or train in one process."
        )
    for name, module in learning.items():
        model.set_submodule(name, nn.SyncBatchNorm.convert_sync_batchnorm(module))
    try:
        yield
    finally:
        for name, module in learning.items():  # with the same tensors inside
            model.set_submodule(name, module)
