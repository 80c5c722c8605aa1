"""The one Accelerator: every other module asks it for the device and the precision."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from resnet_ft.errors import ParameterError

if TYPE_CHECKING:
    from accelerate import Accelerator

_PRECISION = "ACCELERATE_MIXED_PRECISION"
_PARTS = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
_LAUNCHED_WITH = os.environ.get(_PRECISION)


@cache
def accelerator() -> "Accelerator":
    """The process's Accelerator: CUDA, else Apple's MPS, else CPU; mixed precision on CUDA only.

    What accelerate's own commands or `configure_engine` said, in variables of the environment, goes
    before what suits the device.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    precision = os.environ.get(_PRECISION, _suitable_precision())
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # Processors join several processes only when they are asked for by name.
    return Accelerator(
        mixed_precision=precision,
        cpu=several and not torch.cuda.is_available(),
        # Others wait while one downloads and decodes; if it dies, torchrun ends them.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )


def configure_engine(
    *, mixed_precision: str = "auto", gradient_accumulation_steps: int | None = None
) -> None:
    """Choose the precision of what is computed, and how much of a batch at once.

    `mixed_precision`: "no", "fp16" or "bf16"; "auto" is what `accelerate launch` was told, or else
    bf16 on GPUs that compute in it, fp16 on other GPUs, and "no" elsewhere. A process cannot change
    it once it has used its device. `gradient_accumulation_steps`: in so many parts a batch goes
    through the network, so that it takes less memory (`batch_size` remains that of a step); None is
    the variable ACCELERATE_GRADIENT_ACCUMULATION_STEPS, or else 1. Processes that are started from
    this one inherit both. Raises ParameterError for what the device cannot do, or the process no
    longer.
    """
    precision = mixed_precision
    if mixed_precision == "auto":
        precision = _LAUNCHED_WITH or _suitable_precision()
    parts = gradient_accumulation_steps
    if precision not in ("no", "fp16", "bf16") or not (parts is None or parts >= 1):
        raise ParameterError(
            f'mixed_precision={mixed_precision!r} should be "auto", "no", "fp16" or "bf16", and '
            f"gradient_accumulation_steps={parts!r} None, 1 or more."
        )
    if precision == "fp16" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ParameterError('mixed_precision="fp16" needs a GPU. Choose "auto".')
    if not accelerator.cache_info().currsize:
        os.environ[_PRECISION] = precision
    if accelerator().mixed_precision != precision:
        raise ParameterError(
            f"This process computes in mixed_precision={accelerator().mixed_precision!r} already. "
            f"Restart it (in a notebook: the session) to choose {precision!r}."
        )
    if parts is not None:
        os.environ[_PARTS] = str(parts)
        accelerator().gradient_accumulation_steps = parts


def _suitable_precision() -> str:
    if not torch.cuda.is_available():
        return "no"
    # Ampere and newer compute in bfloat16; older cards, Colab's T4 among them, only emulate it.
    return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"


def cpu_cores() -> int:
    """How many processor cores this process may use, beside the others of its run."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


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


def backward(loss: Tensor) -> None:
    """Add the gradients of this loss, scaled as the precision asks, to those that there are."""
    # Accelerate divides, as if the loss were the mean of a part; ours is a part of the mean.
    accelerator().backward(loss * accelerator().gradient_accumulation_steps)


def free_memory() -> None:
    """Give back what PyTorch's allocator keeps of the device's memory."""
    if device().type != "cpu":
        torch.get_device_module(device().type).empty_cache()


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of torch.compile and of those that spread it over devices."""
    model = getattr(model, "_orig_mod", model)
    spread = nn.DataParallel | nn.parallel.DistributedDataParallel
    return model.module if isinstance(model, spread) else model


def alone(net: nn.Module) -> nn.Module:
    """The prepared network without what waits for other processes."""
    return net.module if isinstance(net, nn.parallel.DistributedDataParallel) else net


def describe_device() -> str:
    """One line for a person: `cuda (Tesla T4), fp16`."""
    name = f" ({torch.cuda.get_device_name()})" if device().type == "cuda" else ""
    precision = {"no": "full precision"}.get(accelerator().mixed_precision)
    return f"{device().type}{name}, {precision or accelerator().mixed_precision}"
