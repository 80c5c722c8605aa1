"""How many epochs, by default or in the time there is, and how large steps are."""

import copy
import math
import time

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from resnet_ft import engine
from resnet_ft.models.freezing import train_mode
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.steering import StepScheduler, TimeBudget, warmup_cosine

_EPOCHS = 5  # from a head that is right already
_FROM_RANDOM = 25  # as `train_model`


def paced(
    model: nn.Module,
    dataloaders: dict[str, DataLoader],
    optimizer: Optimizer,
    *,
    epochs: int | None,
    budget: TimeBudget | None,
) -> tuple[int, list[Callback]]:
    """How many epochs, and callbacks that lead the learning rate through them, up and down."""
    pretrained = getattr(model, "pretrained", True)
    if budget is not None:
        schedule = LambdaLR(optimizer, lambda _: warmup_cosine(budget.progress))
        at_least = 0 if pretrained else 1
        epochs = max(at_least, _affordable_epochs(model, dataloaders, budget.seconds_left))
        return epochs, [StepScheduler(schedule), budget]
    if epochs is None:
        epochs = _EPOCHS if pretrained else _FROM_RANDOM
    total = max(1, epochs * len(dataloaders["train"]))
    return epochs, [StepScheduler(LambdaLR(optimizer, lambda step: warmup_cosine(step / total)))]


def _affordable_epochs(model: nn.Module, dataloaders: dict[str, DataLoader], seconds: float) -> int:
    """How many epochs begin within so many seconds, from a step of training that is measured.

    It is made on a copy, with images of zeros, so that nothing else changes.
    """
    trial = copy.deepcopy(model)
    if hasattr(model, "arch"):  # as train_model does
        trial.to(memory_format=torch.channels_last)
    batches = {phase: len(dataloaders[phase]) for phase in ("train", "val")}
    image = dataloaders["val"].dataset[0][0]
    size = getattr(dataloaders["train"].batch_sampler, "batch_size", None) or 32
    with torch.random.fork_rng():  # dropout draws
        step = _step_seconds(trial, torch.zeros(size, *image.shape))
    # Both networks, the present one and the average, are validated, in a third of a step each.
    epoch = step * (batches["train"] + batches["val"] * 2 / 3)
    return math.ceil(seconds / epoch) if seconds > step else 0


def _step_seconds(model: nn.Module, images: torch.Tensor) -> float:
    """The faster of two steps: the first one has memory to fetch."""
    model.to(engine.device())
    train_mode(model)
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        with engine.accelerator().autocast():
            model(images.to(engine.device())).float().square().mean().backward()
        next(model.parameters()).cpu()  # a GPU's work is done when it answers
        taken.append(time.perf_counter() - started)
    return min(taken)
