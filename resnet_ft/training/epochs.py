"""The training loop, and nothing else: epochs, their two phases, steps."""

import time

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from resnet_ft import engine, processes
from resnet_ft.models.freezing import train_mode
from resnet_ft.models.synchronising import synchronised
from resnet_ft.training.batches import batches
from resnet_ft.training.callbacks import notify
from resnet_ft.training.checks import check_not_empty, likeliest
from resnet_ft.training.state import TrainingState
from resnet_ft.training.steps import run_step


def run_epochs(state: TrainingState) -> None:
    """Train and validate in turn, from where the run stands, until it is finished."""
    prepared = engine.prepared(state.model, state.optimizer)
    with synchronised(engine.unwrapped(state.model)), prepared as (net, stepper):
        while not state.is_finished:
            _run_epoch(state, net, stepper)


def _run_epoch(state: TrainingState, net: nn.Module, stepper: Optimizer) -> None:
    """Train once on all images, validate, keep the weights if they are the best so far."""
    if state.phase == "train" and not state.step:  # or else the run goes on amid an epoch
        state.epoch, state.epoch_began = state.epochs_done + 1, time.perf_counter()
        state.row = {"epoch": state.epoch, "learning_rate": state.learning_rate}
        notify(state, "on_epoch_begin")
    if state.phase == "train":
        _run_phase(state, net, stepper)
        state.phase = "val"
    _run_phase(state, net, stepper)
    state.phase = "train"
    state.row["seconds"] = time.perf_counter() - state.epoch_began
    state.rows.append(state.row)
    state.is_best = state.best.update(state.row)
    _step(state.scheduler, state.row["val_loss"])
    if state.run:
        state.run.save_history(state.history)
    notify(state, "on_epoch_end")
    state.should_stop = processes.any_of_all(state.should_stop)


def _run_phase(state: TrainingState, net: nn.Module, stepper: Optimizer) -> None:
    """One pass over the loader of this phase: mean loss and accuracy over its samples."""
    training = state.phase == "train"
    net = net if training else engine.alone(net)  # processes validate their shares on their own
    train_mode(net) if training else net.eval()
    if not state.step:
        state.loss_sum, state.correct, state.count = 0.0, 0, 0
        notify(state, "on_phase_begin")
    with torch.set_grad_enabled(training):
        for images, labels in batches(state):
            state.step += 1
            notify(state, "on_step_begin")
            loss, logits = run_step(state, net, stepper, images, labels)
            hits = (logits.argmax(dim=1).cpu() == likeliest(labels)).sum().item()
            batch = (loss * len(labels), hits, len(labels))
            state.add(*(processes.total(*batch) if training else batch))
            notify(state, "on_step_end")
            if training and processes.any_of_all(state.should_stop):
                state.should_stop = True
                break
    if not training:
        state.share()
    check_not_empty(state)
    state.row[f"{state.phase}_loss"] = state.loss_sum / state.count
    state.row[f"{state.phase}_accuracy"] = state.correct / state.count
    notify(state, "on_phase_end")
    state.step = 0


def _step(scheduler: LRScheduler | ReduceLROnPlateau | None, val_loss: float) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(val_loss)
    elif scheduler is not None:
        scheduler.step()
