"""The batches of a phase: all of them, or those that are left where a run goes on amid it."""

from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import DataLoader

from resnet_ft.errors import TrainingError
from resnet_ft.training.generators import generator_states, set_generator_states
from resnet_ft.training.state import TrainingState


def batches(state: TrainingState) -> Iterator[tuple[Tensor, Tensor]]:
    """What the loader of this phase delivers after `state.step` batches."""
    loader, loaders = state.dataloaders[state.phase], state.dataloaders.values()
    _set_epoch(loader, state.epoch - 1)
    if state.step == 0:
        state.generators_before = generator_states(loaders)
        yield from loader
        return
    if state.should_stop and state.phase == "train":
        return
    set_generator_states(state.generators_before, loaders)
    if hasattr(loader.batch_sampler, "start_at"):
        loader.batch_sampler.start_at(state.step)
        left = iter(loader)
    else:
        left = _after(loader, state)
    set_generator_states(state.generators_now, loaders)
    yield from left


def _after(loader: DataLoader, state: TrainingState) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches are drawn again, since how the loader makes them is not known."""
    batches = iter(loader)
    for done in range(state.step):
        if next(batches, None) is None:
            raise TrainingError(
                f"The {state.phase} loader delivers {done} batches, but {state.step} were seen "
                "before the run broke off. Give the loader of then, or choose another run_name."
            )
    return batches


def _set_epoch(loader: DataLoader, epoch: int) -> None:
    """Tell the samplers that shuffle by epoch (ours and torch's DistributedSampler) which it is."""
    for sampler in (loader, loader.batch_sampler, loader.sampler):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
