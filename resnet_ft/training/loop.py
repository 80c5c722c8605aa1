"""train_model: the training loop, and nothing else."""

import time
from collections.abc import Callable, Sequence
from os import PathLike

import pandas as pd
import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from resnet_ft import engine
from resnet_ft.evaluation.predictions import class_names
from resnet_ft.models.freezing import train_mode
from resnet_ft.training.best import BestModel, whole_model
from resnet_ft.training.callbacks import Callback, notify
from resnet_ft.training.checks import (
    check_batch,
    check_finite,
    check_not_empty,
    check_training,
    likeliest,
    trainable_parameters,
)
from resnet_ft.training.runs import start_run
from resnet_ft.training.state import TrainingState, describe_training
from resnet_ft.training.watching import ProgressBar


def train_model(
    model: nn.Module,
    dataloaders: dict[str, DataLoader],
    criterion: Callable | None = None,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | ReduceLROnPlateau | None = None,
    num_epochs: int = 25,
    *,
    run_dir: str | PathLike | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[nn.Module, pd.DataFrame]:
    """Train on `dataloaders["train"]`, validate on `dataloaders["val"]`, keep the best epoch.

    `model` maps images (N, 3, H, W) to logits (N, C); the loaders yield such images and labels.
    By default the loss is cross-entropy and Adam trains what is not frozen, at 1e-4. `scheduler` is
    stepped once an epoch (ReduceLROnPlateau gets the validation loss). With `run_dir`, that folder
    keeps config.json, history.csv and, whenever an epoch is the best so far, best.pt.

    Returns the model, in evaluation mode with its best weights (highest validation accuracy, ties
    by lower validation loss), and the history: a DataFrame with a row an epoch and the columns
    epoch, train_loss, train_accuracy, val_loss, val_accuracy, learning_rate, seconds. Losses (nats)
    and accuracies are means over samples; those of training are taken while the weights change.

    However the run ends, the model has its best weights so far. Raises TrainingError where training
    cannot start or a loss is not finite, RunError where `run_dir` holds another run.
    """
    criterion = criterion or nn.CrossEntropyLoss()
    if isinstance(criterion, nn.Module):
        criterion.to(engine.device())
    optimizer = optimizer or Adam(trainable_parameters(model), lr=1e-4)
    state = TrainingState(model, dataloaders, criterion, optimizer, scheduler, num_epochs)
    check_training(state)
    network = engine.unwrapped(model)
    whole = whole_model(network)
    whole.classes = class_names(dataloaders["train"]) or getattr(whole, "classes", None)
    state.run = start_run(run_dir, training=describe_training(state)) if run_dir else None
    state.best = BestModel(network, dataloaders["val"], state.run)
    watchers = [*callbacks, ProgressBar()]

    if hasattr(whole, "arch"):  # convolutions are faster so, but networks of one's own may fail
        model.to(memory_format=torch.channels_last)
    notify(watchers, "on_fit_begin", state)
    try:
        with engine.prepared(model, optimizer) as (net, stepper):
            for state.epoch in range(1, num_epochs + 1):
                _run_epoch(state, net, stepper, watchers)
                if state.should_stop:
                    break
    finally:
        state.best.restore()
        notify(watchers, "on_fit_end", state)
    return network, state.history


def _run_epoch(
    state: TrainingState, net: nn.Module, stepper: Optimizer, watchers: Sequence[Callback]
) -> None:
    """Train once on all images, validate, keep the weights if they are the best so far."""
    started, learning_rate = time.perf_counter(), state.learning_rate
    state.row = {"epoch": state.epoch}
    notify(watchers, "on_epoch_begin", state)
    for state.phase in ("train", "val"):
        _run_phase(state, net, stepper, watchers)
    state.row |= {"learning_rate": learning_rate, "seconds": time.perf_counter() - started}
    state.rows.append(state.row)
    state.is_best = state.best.update(state.row)
    _step(state.scheduler, state.row["val_loss"])
    if state.run:
        state.run.save_history(state.history)
    notify(watchers, "on_epoch_end", state)


def _run_phase(
    state: TrainingState, net: nn.Module, stepper: Optimizer, watchers: Sequence[Callback]
) -> None:
    """One pass over the loader of this phase: mean loss and accuracy over its samples."""
    training, loader = state.phase == "train", state.dataloaders[state.phase]
    train_mode(net) if training else net.eval()
    _set_epoch(loader, state.epoch - 1)
    notify(watchers, "on_phase_begin", state)
    loss_sum, correct, count = 0.0, 0, 0
    with torch.set_grad_enabled(training):
        for state.step, (images, labels) in enumerate(loader, start=1):
            notify(watchers, "on_step_begin", state)
            logits = net(images.to(engine.device(), non_blocking=True))
            check_batch(logits, labels)
            labels = labels.to(engine.device(), non_blocking=True)  # noqa: PLW2901
            loss = state.criterion(logits, labels)
            loss_value = loss.item()
            check_finite(loss_value, state)
            if training:
                stepper.zero_grad()
                engine.accelerator().backward(loss)
                stepper.step()
            loss_sum += loss_value * len(labels)
            correct += (logits.argmax(dim=1) == likeliest(labels)).sum().item()
            count += len(labels)
            notify(watchers, "on_step_end", state)
            if training and state.should_stop:
                break
    check_not_empty(count, state)
    state.row[f"{state.phase}_loss"] = loss_sum / count
    state.row[f"{state.phase}_accuracy"] = correct / count
    notify(watchers, "on_phase_end", state)


def _set_epoch(loader: DataLoader, epoch: int) -> None:
    """Tell the samplers that shuffle by epoch (ours and torch's DistributedSampler) which it is."""
    for sampler in (loader, loader.batch_sampler, loader.sampler):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)


def _step(scheduler: LRScheduler | ReduceLROnPlateau | None, val_loss: float) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(val_loss)
    elif scheduler is not None:
        scheduler.step()
