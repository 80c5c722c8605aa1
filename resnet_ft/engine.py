"""The one Accelerator: every other module asks it for the device and the precision."""

import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resnet_ft.errors import ParameterError, TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

_PRECISION = "ACCELERATE_MIXED_PRECISION"
_MICRO_BATCHES = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
_LAUNCHED_WITH = os.environ.get(_PRECISION)
_TPU_VARIABLES = ("TPU_NAME", "TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR")
_PATIENCE_S = 15  # processes that are started together have connected by then
_START_ALL = (
    "Start all of them with torchrun or accelerate launch. For a single process, remove "
    "WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from the environment."
)


@cache
def accelerator() -> "Accelerator":
    """The process's Accelerator: CUDA, else Apple's MPS, else CPU; mixed precision on CUDA only.

    The environment variables that `accelerate launch` or `configure_engine` set take precedence.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, is_torch_xla_available

    if is_torch_xla_available(check_is_tpu=True):
        raise ParameterError(
            "This runtime has a TPU, which this library does not support. In Colab choose Runtime "
            "> Change runtime type > T4 GPU (or CPU)."
        )
    count = int(os.environ.get("WORLD_SIZE") or 1)
    precision = os.environ.get(_PRECISION) or _suitable_precision()
    _check_precision(precision, in_environment=True)
    parts = os.environ.get(_MICRO_BATCHES) or "1"
    if not parts.isdecimal() or int(parts) < 1:
        raise ParameterError(f"{_MICRO_BATCHES}={parts} in the environment should be 1 or more.")
    with _connecting(count):
        created = Accelerator(
            mixed_precision=precision,
            cpu=count > 1 and not torch.cuda.is_available(),  # else accelerate connects none
            # Others wait while one downloads and decodes; if it dies, torchrun ends them.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
        )
    if created.num_processes < count:
        raise ParameterError(
            f"WORLD_SIZE={count} in the environment, but this process is connected to no other "
            f"one. {_START_ALL}"
        )
    return created


def configure_engine(
    *, mixed_precision: str = "auto", gradient_accumulation_steps: int | None = None
) -> None:
    """Choose the precision of the computation and the number of micro-batches per batch.

    `mixed_precision`: "no", "fp16" or "bf16"; "auto" is the choice of `accelerate launch`, or else
    bf16 on GPUs that compute in it, fp16 on other GPUs, and "no" elsewhere. A process cannot change
    it once it has used its device. `gradient_accumulation_steps`: each batch goes through the model
    in this number of micro-batches, which takes less memory (`batch_size` remains that of a step);
    None is the environment variable ACCELERATE_GRADIENT_ACCUMULATION_STEPS, or else 1. Child
    processes inherit both. Raises ParameterError for what the device, or this process by now,
    cannot do.
    """
    precision, is_automatic = mixed_precision, mixed_precision == "auto"
    if is_automatic:
        precision = _LAUNCHED_WITH or _suitable_precision()
    _check_precision(precision, in_environment=is_automatic)
    micro_batches = gradient_accumulation_steps
    if micro_batches is not None and micro_batches < 1:
        raise ParameterError(
            f"gradient_accumulation_steps={micro_batches!r} should be None, 1 or more."
        )
    if not accelerator.cache_info().currsize:
        os.environ[_PRECISION] = precision
    if accelerator().mixed_precision != precision:
        raise ParameterError(
            f"This process already computes in mixed_precision={accelerator().mixed_precision!r}. "
            f"Restart it (in a notebook: the session) to choose {precision!r}."
        )
    if micro_batches is not None:
        os.environ[_MICRO_BATCHES] = str(micro_batches)
        accelerator().gradient_accumulation_steps = micro_batches


def _check_precision(precision: str, *, in_environment: bool) -> None:
    """Raise ParameterError, naming who chose it, for a precision that cannot be computed in."""
    chosen, remedy, auto = f"mixed_precision={precision!r}", 'Choose "auto".', '"auto", '
    if in_environment:
        chosen = f"The environment variable {_PRECISION}={precision}"
        remedy, auto = "Remove it, or use accelerate launch --mixed_precision no.", ""
    if precision not in ("no", "fp16", "bf16"):
        raise ParameterError(f'{chosen} should be {auto}"no", "fp16" or "bf16". {remedy}')
    if precision == "fp16" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ParameterError(f"{chosen} needs a GPU. {remedy}")


@contextmanager
def _connecting(count: int) -> Iterator[None]:
    """Warn where processes do not connect: variables of another run may have been left over."""
    master = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT', '29500')}"
    text = (
        f"Process {os.environ.get('RANK', '0')} of {count}, by RANK and WORLD_SIZE in the "
        f"environment, has waited {_PATIENCE_S} seconds for the others to connect at {master}, "
        f"and still waits. {_START_ALL}"
    )
    timer = threading.Timer(_PATIENCE_S, warnings.warn, [text])
    if count > 1:
        timer.start()
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if count == 1 and "LOCAL_RANK" not in os.environ:
            raise
        raise ParameterError(
            f"This process cannot be connected to others ({error}). {_START_ALL}"
        ) from error
    finally:
        timer.cancel()


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


def compute_dtype() -> torch.dtype:
    """The type that networks compute in, as far as autocast chooses it."""
    types = {"fp16": torch.float16, "bf16": torch.bfloat16}
    return types.get(accelerator().mixed_precision, torch.float32)


def describe_device() -> str:
    """One line for a person: `cuda (Tesla T4), fp16`."""
    name = f" ({torch.cuda.get_device_name()})" if device().type == "cuda" else ""
    if device().type == "cpu" and any(one in os.environ for one in _TPU_VARIABLES):
        name = " (the TPU of this runtime is not supported: choose one with a GPU)"
    precision = accelerator().mixed_precision
    return f"{device().type}{name}, {'full precision' if precision == 'no' else precision}"


@contextmanager
def prepared(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
    """Model and optimizer on the device and wrapped for training; unwrapped again at the end.

    In mixed precision, what stays in float32 is multiplied in TF32 meanwhile, where the GPU can.
    """
    engine = accelerator()
    own, products = set(model.__dict__), torch.get_float32_matmul_precision()
    if engine.mixed_precision != "no":
        torch.set_float32_matmul_precision("high")
    try:
        yield engine.prepare(model, optimizer)
    finally:
        torch.set_float32_matmul_precision(products)
        engine.unwrap_model(model, keep_fp32_wrapper=False)
        # These would tell the next run that the model is prepared already.
        for name in {"forward", "_is_accelerate_prepared"} - own:
            model.__dict__.pop(name, None)
        engine.free_memory()  # else it keeps the model and optimizer alive


@contextmanager
def compiled(net: nn.Module) -> Iterator[nn.Module]:
    """A prepared model that torch.compile makes faster; as it is, with a warning, where it cannot.

    A small layer is compiled first, to see whether there is a compiler at all. Parts of the model
    for which it fails later run as they are.
    """
    try:
        torch.compile(nn.Linear(2, 2).to(device()))(torch.ones(2, 2, device=device()))
    except Exception as error:  # a compiler may lack anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        warnings.warn(
            f"compile_model=True does nothing here, since torch.compile fails: {reason}",
            stacklevel=2,
        )
        yield net
        return
    with torch._dynamo.config.patch(suppress_errors=True):
        fast: Any = torch.compile(net)
        yield fast


def backward(loss: Tensor) -> None:
    """Add this loss's gradients, scaled as the precision requires, to the present ones."""
    # Accelerate divides, as if the loss were a micro-batch's mean; ours is a share of the batch's.
    accelerator().backward(loss * accelerator().gradient_accumulation_steps)


def unscale_gradients(net: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Divide the gradients by the scale of the loss, which float16 needs; else return None.

    The scalar tells, on the device, whether they are no numbers, so that the optimizer skips its
    step. (Accelerate's own flag is not to be relied on with fused optimizers:
    https://github.com/huggingface/accelerate/issues/4242.)
    """
    if accelerator().scaler is None:
        return None
    accelerator().unscale_gradients(optimizer)
    gradients = [one.grad for one in net.parameters() if one.grad is not None]
    return ~nn.utils.get_total_norm(gradients, math.inf).isfinite()


def free_memory() -> None:
    """Give the device's memory that PyTorch's allocator caches back to the system."""
    if device().type != "cpu":
        torch.get_device_module(device().type).empty_cache()


class InParts:
    """A network for batches without gradients, which survives where a batch is too large.

    Where memory runs out, this and later batches go through it in twice as many parts.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net, self._parts = net, 1

    def __call__(self, images: Tensor) -> Tensor:
        """Outputs for images (N, ...). Raises TrainingError if a single one is too much."""
        parts = self._parts
        while True:
            try:
                some = images.tensor_split(max(1, min(parts, len(images))))
                outputs = torch.cat([self._net(one) for one in some])
                break
            except torch.OutOfMemoryError as error:
                if parts >= len(images):
                    raise TrainingError(
                        "A single image does not fit into memory. Choose a smaller image_size or "
                        "arch, or end what else uses the device."
                    ) from error
            free_memory()  # here, where the error no longer holds what filled it
            parts *= 2
        if parts > self._parts:
            self._parts = parts
            warnings.warn(
                f"{len(images)} images at once do not fit into memory: from now on each batch "
                f"goes through the network in {parts} parts, with the same results.",
                stacklevel=3,
            )
        return outputs


def to_cpu(*tensors: Tensor) -> Callable[[], list[Tensor]]:
    """Begin to copy tensors from the device; what is returned waits for the copies and has them."""
    if tensors[0].device.type != "cuda":
        copied = [tensor.cpu() for tensor in tensors]
        return lambda: copied
    pinned = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    event = torch.cuda.Event()
    event.record()

    def wait() -> list[Tensor]:
        event.synchronize()
        return pinned

    return wait


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without the wrappers of torch.compile and of parallel devices."""
    model = getattr(model, "_orig_mod", model)
    wrappers = nn.DataParallel | nn.parallel.DistributedDataParallel
    return model.module if isinstance(model, wrappers) else model


def alone(net: nn.Module) -> nn.Module:
    """The prepared model without the wrapper that waits for other processes."""
    inner = getattr(net, "_orig_mod", net)
    return inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else net
