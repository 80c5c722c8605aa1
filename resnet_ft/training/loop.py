"""train_model: the training loop, from its first line to an optimizer step."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from os import PathLike

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from resnet_ft import distributed, engine
from resnet_ft.errors import TrainingError
from resnet_ft.evaluation.predictions import class_names
from resnet_ft.models.freezing import synchronised, train_mode
from resnet_ft.training.callbacks import Callback, ProgressBar, notify
from resnet_ft.training.resume import go_on, go_on_with_callbacks, kept_safe
from resnet_ft.training.rng import generator_states, set_generator_states
from resnet_ft.training.run import start_run
from resnet_ft.training.state import (
    BestModel,
    TrainingState,
    check_batch,
    check_finite,
    check_not_empty,
    check_training,
    describe_training,
    likeliest,
    trainable_parameters,
    whole_model,
)


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


def run_step(
    state: TrainingState, net: nn.Module, stepper: Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, Tensor]:
    """Mean loss and logits (N, C) of a batch; while training, the weights take a step.

    Where memory runs out, the batch goes through the network in twice as many parts, whose
    gradients add up to those of the whole; that stays so for the rest of the run. (Batch
    normalisation that learns sees the parts.) Raises TrainingError where one image is too much.
    """
    while True:
        try:
            loss, logits = _in_parts(state, net, stepper, images, labels)
            break
        except torch.OutOfMemoryError as error:
            _halve(state, len(images), error)
        engine.free_memory()  # here, where the error no longer holds what filled it
    if state.phase == "train":
        stepper.step()
    return loss, logits


def _in_parts(
    state: TrainingState, net: nn.Module, stepper: Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, Tensor]:
    """Gradients of the mean loss over all parts, and their logits one after the other."""
    loss_sum, answers, training = 0.0, [], state.phase == "train"
    if training:
        stepper.zero_grad()
        # Gradients are averaged over processes, whose shares of the batch may be unequal.
        whole = distributed.total(len(labels))[0] / distributed.count()
    # While training, all processes have to have as many parts: whole is at most one more than each.
    number = min(state.micro_batches, max(1, int(whole)) if training else len(images))
    parts = list(zip(images.tensor_split(number), labels.tensor_split(number), strict=True))
    for some, true in parts:
        is_last = len(answers) == len(parts) - 1
        with nullcontext() if is_last or not training else engine.accelerator().no_sync(net):
            logits = net(some.to(engine.device(), non_blocking=True))
            check_batch(logits, true)
            loss = state.criterion(logits, true.to(engine.device(), non_blocking=True))
            check_finite(loss.item(), state)
            answers.append(logits.detach())
            if training:
                engine.backward(loss * (len(true) / whole))
        loss_sum += loss.item() * len(true)
    return loss_sum / len(labels), torch.cat(answers)


def _halve(state: TrainingState, batch_size: int, error: torch.OutOfMemoryError) -> None:
    if distributed.count() > 1:  # the others wait for this one's gradients of the whole share
        raise TrainingError(
            "The memory does not suffice for a process's share of a batch. Take a smaller "
            "batch_size, more processes or gradient_accumulation_steps, and run it again."
        ) from error
    if state.micro_batches >= batch_size:
        raise TrainingError(
            "The memory does not suffice for a single image. Take a smaller image_size or arch, "
            'or freeze the early layers: freeze(model, until="layer4").'
        ) from error
    state.micro_batches *= 2
    warnings.warn(
        f"The memory does not suffice for {batch_size} images at once: from now on each batch goes "
        f"through the network in {state.micro_batches} parts, with the same steps as before.",
        stacklevel=5,
    )


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
    state.should_stop = distributed.any_of_all(state.should_stop)


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
            state.add(*(distributed.total(*batch) if training else batch))
            notify(state, "on_step_end")
            if training and distributed.any_of_all(state.should_stop):
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
    if run_dir and distributed.is_main():
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
