"""A trial that leaves no trace on what the run after it will draw."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader

from resnet_ft import engine
from resnet_ft.training.mixing import MixedLoader


@contextmanager
def without_trace(loader: DataLoader) -> Iterator[DataLoader]:
    """Yield a loader of the same batches, after whose use everything is as it was.

    That is: the generators of Python, NumPy, PyTorch, the loader and its samplers, the epochs of
    loader and samplers, and the scale of the loss in mixed precision.
    """
    inner = getattr(loader.batch_sampler, "sampler", None)
    parts = [loader, loader.batch_sampler, loader.sampler, inner]
    generators = [part.generator for part in parts if getattr(part, "generator", None) is not None]
    states = [generator.get_state() for generator in generators]
    epochs = [(part, part.epoch) for part in parts if hasattr(part, "epoch")]
    python, numpy, scaler = random.getstate(), np.random.get_state(), engine.accelerator().scaler
    scale = scaler and scaler.state_dict()
    device = engine.device()
    devices = [] if device.type == "cpu" else [device]  # that of the CPU is always kept
    try:
        with torch.random.fork_rng(devices, device_type=device.type):
            yield _with_own_workers(loader)
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
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
