"""The one Accelerator: every other module asks it for the device and the precision."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator


@cache
def accelerator() -> "Accelerator":
    """The process's Accelerator: CUDA, else Apple's MPS, else CPU; mixed precision on CUDA only."""
    from accelerate import Accelerator

    return Accelerator(mixed_precision=_precision())


def _precision() -> str:
    if not torch.cuda.is_available():
        return "no"
    # Ampere and newer compute in bfloat16; older cards, Colab's T4 among them, only emulate it.
    return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"


def cpu_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device() -> torch.device:
    """Where tensors belong."""
    return accelerator().device


@contextmanager
def prepared(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
    """Model and optimizer on the device and wrapped for training; unwrapped again at the end."""
    engine = accelerator()
    own = set(model.__dict__)
    try:
        yield engine.prepare(model, optimizer)
    finally:
        engine.unwrap_model(model, keep_fp32_wrapper=False)
        # What is left on the model would tell the next run that it is prepared already.
        for name in {"forward", "_is_accelerate_prepared"} - own:
            model.__dict__.pop(name, None)
        engine.free_memory()  # it would keep the model and optimizer alive from one run to the next


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of torch.compile and DataParallel, whose state dict has its own names."""
    model = getattr(model, "_orig_mod", model)
    return model.module if isinstance(model, nn.DataParallel) else model


def describe_device() -> str:
    """One line for a person: `cuda (Tesla T4), fp16`."""
    name = f" ({torch.cuda.get_device_name()})" if device().type == "cuda" else ""
    precision = {"no": "full precision"}.get(accelerator().mixed_precision)
    return f"{device().type}{name}, {precision or accelerator().mixed_precision}"
