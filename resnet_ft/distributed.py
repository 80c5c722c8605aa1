"""Several processes, of one machine or of many: which one this is, and what all of them know.

`accelerate launch` and `torchrun` start them. In a single process everything here is trivial. What
says "all processes" has to be called by all of them, in the same order.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from resnet_ft import engine


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the one that writes what all have in common."""
    return rank() == 0


def _is_first_here() -> bool:
    """Whether this is the one that writes what each machine has of its own, such as its caches."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def is_first_in(folder: Path) -> bool:
    """Whether this is the one of all processes that writes into a folder, which machines may share.

    Each leaves a mark there and looks for those of the others.
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


def total(*values: float) -> list[float]:
    """Each value, summed over all processes."""
    if count() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(sums)
    return sums.tolist()


def any_of_all(flag: bool) -> bool:
    """Whether one of all processes says yes."""
    return total(float(flag))[0] > 0


def from_main(value: object) -> object:
    """What the main one of all processes has."""
    if count() == 1:
        return value
    held = [value]
    _device()
    dist.broadcast_object_list(held, src=0)
    return held[0]


def of_all(value: object) -> list[object]:
    """What each of all processes has, by rank."""
    if count() == 1:
        return [value]
    _device()
    values: list[object] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def gathered(rows: Tensor) -> list[Tensor]:
    """The rows (n, ...) that each of all processes has, by rank; n may differ."""
    if count() == 1:
        return [rows]
    lengths = of_all(len(rows))
    padded = torch.zeros(max(lengths), *rows.shape[1:], dtype=rows.dtype, device=_device())
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part[:length].to(rows.device) for part, length in zip(parts, lengths, strict=True)]


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        of_all(None)


@contextmanager
def one_of_each_machine_first() -> Iterator[None]:
    """The block is run by one process of each machine, and then by all others there."""
    if not _is_first_here():
        wait()
    yield
    if _is_first_here():
        wait()


def _device() -> torch.device:
    """Where tensors have to be to be sent; accelerate connects the processes when it is asked."""
    return engine.device()
