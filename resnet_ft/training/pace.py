"""How many epochs, by default or in the time there is, and how large steps are."""

import copy
import math
import time

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from resnet_ft import engine, processes
from resnet_ft.models.freezing import train_mode
from resnet_ft.training.budget import TimeBudget
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.checks import trainable_parameters
from resnet_ft.training.state import TrainingState
from resnet_ft.training.steering import StepScheduler, warmup_cosine
from resnet_ft.training.steps import run_step

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
        if epochs is None:
            affordable = _affordable_epochs(model, dataloaders, budget.seconds_left)
            epochs = processes.from_main(max(at_least, affordable))
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
    images = torch.zeros(math.ceil(size / processes.count()), *image.shape)
    optimizer = SGD(trainable_parameters(trial), lr=0.0)
    state = TrainingState(trial, dataloaders, nn.CrossEntropyLoss(), optimizer, None, 1)
    with torch.random.fork_rng():  # dropout draws
        step = _step_seconds(state, images)
    # Both networks, the present one and the average, are validated, in a third of a step each.
    epoch = step * (batches["train"] + batches["val"] * 2 / 3)
    return math.ceil(seconds / epoch) if seconds > step else 0


def _step_seconds(state: TrainingState, images: Tensor) -> float:
    """The faster of two steps: the first one has memory to fetch."""
    labels, taken = torch.zeros(len(images), dtype=torch.long), []
    with engine.prepared(state.model, state.optimizer) as (net, stepper):
        train_mode(net)
        for _ in range(2):
            started = time.perf_counter()
            run_step(state, net, stepper, images, labels)
            next(net.parameters()).cpu()  # a GPU's work is done when it answers
            taken.append(time.perf_counter() - started)
    return min(taken)
