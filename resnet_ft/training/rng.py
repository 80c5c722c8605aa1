"""Everything that draws at random: what it would draw next can be kept."""

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from resnet_ft import distributed, engine
from resnet_ft.data.mixing import MixedLoader
from resnet_ft.files import fingerprint


def generator_states(loaders: Iterable[DataLoader]) -> dict[str, object]:
    """The states of Python's, NumPy's and PyTorch's generators, and of those that loaders own.

    Quickly, for every step: NumPy's has an array in it, which is a list in what is saved.
    """
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": _of_device(),
        "loaders": [generator.get_state() for generator in _generators(loaders)],
    }


def set_generator_states(states: dict[str, object], loaders: Iterable[DataLoader]) -> None:
    """Let everything draw what it drew after `generator_states`."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    module = _module()
    if module is not None and states["device"] is not None:
        module.set_rng_state(states["device"])
    draw_apart()
    # Loaders of another kind than then have no state to take.
    for generator, state in zip(_generators(loaders), states["loaders"], strict=False):
        generator.set_state(state)


def draw_apart() -> None:
    """Let each of several processes draw others, or else dropout would be alike in all of them."""
    if not distributed.is_main():
        present = torch.get_rng_state().tolist()
        torch.manual_seed(int(fingerprint([present, distributed.rank()]), 16))


def _of_device() -> Tensor | None:
    module = _module()
    return None if module is None else module.get_rng_state()


def _module() -> object | None:
    """torch.cuda or torch.mps, where the device has a generator of its own."""
    kind = engine.device().type
    return None if kind == "cpu" else torch.get_device_module(kind)


def _generators(loaders: Iterable[DataLoader]) -> list[torch.Generator]:
    found = []
    for loader in loaders:
        inner = getattr(loader.batch_sampler, "sampler", None)
        for part in (loader, loader.batch_sampler, loader.sampler, inner):
            generator = getattr(part, "generator", None)
            if generator is not None and not any(generator is other for other in found):
                found.append(generator)
    return found


@contextmanager
def without_trace(loader: DataLoader) -> Iterator[DataLoader]:
    """Yield a loader of the same batches, after whose use everything is as it was.

    That is: the generators of Python, NumPy, PyTorch, the loader and its samplers, the epochs of
    loader and samplers, and the scale of the loss in mixed precision.
    """
    inner = getattr(loader.batch_sampler, "sampler", None)
    parts = (loader, loader.batch_sampler, loader.sampler, inner)
    epochs = [(part, part.epoch) for part in parts if hasattr(part, "epoch")]
    generators, scaler = generator_states([loader]), engine.accelerator().scaler
    scale = scaler and scaler.state_dict()
    try:
        yield _with_own_workers(loader)
    finally:
        set_generator_states(generators, [loader])
        for part, epoch in epochs:
            part.epoch = epoch
        if scaler:
            scaler.load_state_dict(scale)


def _with_own_workers(loader: DataLoader) -> DataLoader:
    """A shallow copy: the loader's persistent workers would go on from what they have drawn."""
    twin = copy.copy(loader)
    if isinstance(loader, MixedLoader):
        twin.loader = _with_own_workers(loader.loader)
    else:
        twin._iterator = None
    return twin
