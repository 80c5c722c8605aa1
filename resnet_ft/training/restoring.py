"""A trial that leaves no trace on what the run after it will draw."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import DataLoader

from resnet_ft import engine
from resnet_ft.training.generators import generator_states, set_generator_states
from resnet_ft.training.mixing import MixedLoader


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
