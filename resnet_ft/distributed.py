"""Several processes, on one machine or on many: which one this is, and what all of them know.

`accelerate launch` and `torchrun` start them. Where there is one process, nothing is exchanged.
All processes have to call the functions that concern all of them, in the same order.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from resnet_ft import engine

_Value = TypeVar("_Value")


def count() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK") or 0)


def is_main() -> bool:
    """Whether this is the process that writes for all."""
    return rank() == 0


def is_first_in(folder: Path) -> bool:
    """Whether this process is the one that writes to a folder, which machines may share.

    Each process leaves a mark there and looks for the marks of the others.
    """
    if count() == 1:
        return True
    run = from_main(secrets.token_hex(4))
    marks = [folder / f".{run}-{rank}" for rank in range(count())]
    marks[rank()].touch()
    wait()
    first = next(mark for mark in marks if mark.exists())
    wait()
    marks[rank()].unlink()
    return first == marks[rank()]


def total(*values: Any) -> list[Any]:
    """Each value, a number or a scalar tensor, summed over all processes.

    In a single process these are the values themselves, and nothing waits for the device.
    """
    if count() == 1:
        return list(values)
    numbers = [torch.as_tensor(value, dtype=torch.float64) for value in values]
    sums = torch.stack([number.to(engine.device()) for number in numbers])
    dist.all_reduce(sums)
    return sums.tolist()


def any_of_all(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return total(float(flag))[0] > 0


def from_main(value: _Value) -> _Value:
    """The value of the main process."""
    if count() == 1:
        return value
    held = [value]
    engine.device()  # accelerate connects the processes when it is first asked
    dist.broadcast_object_list(held, src=0)
    return held[0]


def of_all(value: _Value) -> list[_Value]:
    """The value of each process, by rank."""
    if count() == 1:
        return [value]
    engine.device()
    values = [value] * count()
    dist.all_gather_object(values, value)
    return values


def gathered(rows: Tensor) -> list[Tensor]:
    """The rows (n, ...) of each process, by rank; n may differ."""
    if count() == 1:
        return [rows]
    lengths = of_all(len(rows))
    padded = torch.zeros(max(lengths), *rows.shape[1:], dtype=rows.dtype, device=engine.device())
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part[:length].to(rows.device) for part, length in zip(parts, lengths, strict=True)]


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        of_all(None)


def end() -> None:
    """Leave the group at the end of a program: left to the interpreter, PyTorch may abort there."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def one_per_machine_first() -> Iterator[None]:
    """Let one process per machine run the block, and then all others there."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not is_first:
        wait()
    yield
    if is_first:
        wait()
