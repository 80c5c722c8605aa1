"""train_model: a run, from where it stands to its end."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from os import PathLike

import pandas as pd
import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from resnet_ft import engine, processes
from resnet_ft.evaluation.predictions import class_names
from resnet_ft.training.best import BestModel, whole_model
from resnet_ft.training.callbacks import Callback, notify
from resnet_ft.training.checkpointing import kept_safe
from resnet_ft.training.checks import check_training, trainable_parameters
from resnet_ft.training.epochs import run_epochs
from resnet_ft.training.resuming import go_on, go_on_with_callbacks
from resnet_ft.training.starting import start_run
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
    resume: str | bool = "auto",
    callbacks: Sequence[Callback] = (),
) -> tuple[nn.Module, pd.DataFrame]:
    """Train on `dataloaders["train"]`, validate on `dataloaders["val"]`, keep the best epoch.

    `model` maps images (N, 3, H, W) to logits (N, C); the loaders yield such images and labels.
    By default the loss is cross-entropy and Adam trains what is not frozen, at 1e-4. `scheduler` is
    stepped once an epoch (ReduceLROnPlateau gets the validation loss).

    With `run_dir`, that folder keeps config.json, history.csv, best.pt, and where the run stands
    (see `Checkpointer`): called again with the same parameters, a run that broke off goes on where
    it was, a finished one returns at once, and a larger `num_epochs` adds epochs. `resume=False`
    refuses that. (Persistent workers of loaders that make_dataloaders did not make have random
    numbers of their own, which are lost.) Memory that is too small for a batch halves what is
    computed at once.

    Returns the model, in evaluation mode with its best weights (highest validation accuracy, ties
    by lower validation loss), and the history: a DataFrame with a row an epoch and the columns
    epoch, train_loss, train_accuracy, val_loss, val_accuracy, learning_rate, seconds. Losses (nats)
    and accuracies are means over samples; those of training are taken while the weights change.

    However the run ends, the model has its best weights so far. Raises TrainingError where training
    cannot start or a loss is not finite, RunError where `run_dir` holds a run with other
    parameters.
    """
    criterion = criterion or nn.CrossEntropyLoss()
    if isinstance(criterion, nn.Module):
        criterion.to(engine.device())
    optimizer = optimizer or Adam(trainable_parameters(model), lr=1e-4)
    state = TrainingState(model, dataloaders, criterion, optimizer, scheduler, num_epochs)
    state.micro_batches = engine.accelerator().gradient_accumulation_steps
    check_training(state)
    network = engine.unwrapped(model)
    whole = whole_model(network)
    whole.classes = class_names(dataloaders["train"]) or getattr(whole, "classes", None)
    if run_dir and processes.is_main():
        state.run = start_run(run_dir, resume=resume, training=describe_training(state))
        state.config = state.run.config
    state.best = BestModel(network, dataloaders["val"], state.run)
    state.callbacks = kept_safe([*callbacks, ProgressBar()], run_dir)

    if hasattr(whole, "arch"):  # convolutions are faster so, but networks of one's own may fail
        model.to(memory_format=torch.channels_last)
    model.to(engine.device())
    with state.run.storage.held() if state.run else nullcontext():
        _go_to_the_end(state)
    return network, state.history


def _go_to_the_end(state: TrainingState) -> None:
    """Train what is left; the model has its best weights afterwards, also after an exception."""
    saved = go_on(state)
    notify(state, "on_fit_begin")
    try:
        go_on_with_callbacks(state, saved)
        saved = None  # as large as the run itself
        if not state.is_finished:
            run_epochs(state)
    except BaseException:
        notify(state, "on_interrupt")
        raise
    finally:
        state.best.restore()
        notify(state, "on_fit_end")
