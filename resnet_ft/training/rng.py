"""Random number generators: their states saved, restored, and left untouched by a trial."""

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from resnet_ft import distributed, engine
from resnet_ft.data.mixing import MixedLoader
from resnet_ft.files import fingerprint

RngStates = dict[str, Any]


def rng_states(loaders: Iterable[DataLoader]) -> RngStates:
    """The states of Python's, NumPy's and PyTorch's generators, and of those that loaders own.

    Cheap enough for every step. NumPy's holds an array, which becomes a list when it is saved.
    """
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": _device_state(),
        "loaders": [generator.get_state() for generator in _generators(loaders)],
    }


def set_rng_states(states: RngStates, loaders: Iterable[DataLoader]) -> None:
    """Let every generator continue from `rng_states`."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if _device_state() is not None and states["device"] is not None:
        torch.get_device_module(engine.device().type).set_rng_state(states["device"])
    seed_by_rank()
    # Loaders of another kind than when the states were saved have no place for them.
    for generator, state in zip(_generators(loaders), states["loaders"], strict=False):
        generator.set_state(state)


def seed_by_rank() -> None:
    """Let each of several processes draw other numbers: dropout must not be alike in all."""
    if not distributed.is_main():
        present = torch.get_rng_state().tolist()
        torch.manual_seed(int(fingerprint([present, distributed.rank()]), 16))


def _device_state() -> Tensor | None:
    kind = engine.device().type
    return None if kind == "cpu" else torch.get_device_module(kind).get_rng_state()


def _parts(loader: DataLoader) -> list[Any]:
    """A loader and its samplers."""
    inner = getattr(loader.batch_sampler, "sampler", None)
    return [loader, loader.batch_sampler, loader.sampler, inner]


def _generators(loaders: Iterable[DataLoader]) -> list[torch.Generator]:
    found = (getattr(part, "generator", None) for loader in loaders for part in _parts(loader))
    return list(dict.fromkeys(one for one in found if one is not None))


@contextmanager
def without_trace(loader: DataLoader) -> Iterator[DataLoader]:
    """Yield a loader of the same batches; after the block everything is as before.

    That is: the generators of Python, NumPy, PyTorch, the loader and its samplers, the epochs of
    loader and samplers, and the scale of the loss in mixed precision.
    """
    epochs = [(part, part.epoch) for part in _parts(loader) if hasattr(part, "epoch")]
    states, scaler = rng_states([loader]), engine.accelerator().scaler
    scale = scaler and scaler.state_dict()
    try:
        yield _with_own_workers(loader)
    finally:
        set_rng_states(states, [loader])
        for part, epoch in epochs:
            part.epoch = epoch
        if scaler:
            scaler.load_state_dict(scale)


def _with_own_workers(loader: DataLoader) -> DataLoader:
    """A shallow copy: the loader's persistent workers would continue from what they have drawn."""
    twin: Any = copy.copy(loader)
    if isinstance(loader, MixedLoader):
        twin.loader = _with_own_workers(loader.loader)
    else:
        twin._iterator = None
    return twin
