"""train_model: the training loop, from its first line to an optimizer step."""

import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from os import PathLike
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from resnet_ft import distributed, engine
from resnet_ft.data.batches import device_batches
from resnet_ft.errors import ParameterError, TrainingError
from resnet_ft.evaluation.predictions import class_names
from resnet_ft.models.check import check_model
from resnet_ft.models.freezing import synchronised_batchnorm, train_mode
from resnet_ft.training.callbacks import Callback, ProgressBar
from resnet_ft.training.criterion import adds_up, check_additive, weight_of
from resnet_ft.training.describe import describe_training, initial_rates, remember_rates
from resnet_ft.training.images import check_images, record_images
from resnet_ft.training.resume import announce, load_resume_state, resume_callbacks, with_autosave
from resnet_ft.training.rng import rng_states, set_rng_states
from resnet_ft.training.run import Run
from resnet_ft.training.schedule import PerStep, make_optimizer
from resnet_ft.training.state import (
    BestModel,
    Metric,
    Row,
    StepOutput,
    TrainingState,
    check_training,
    trainable_parameters,
    whole_model,
)

Batch = tuple[Tensor, Tensor]


def train_model(
    model: nn.Module,
    dataloaders: Mapping[str, DataLoader],
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | ReduceLROnPlateau | PerStep | None = None,
    num_epochs: int = 25,
    *,
    metrics: Mapping[str, Metric] | None = None,
    clip_grad_norm: float | None = None,
    compile_model: bool = False,
    run_dir: str | PathLike[str] | Run | None = None,
    resume: str | bool = "auto",
    first_row: Row | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[nn.Module, pd.DataFrame]:
    """Train on `dataloaders["train"]`, validate on `dataloaders["val"]`, keep the best epoch.

    `model` maps images (N, 3, H, W) to logits (N, C); the loaders yield such images and labels (N,)
    or, mixed, (N, C). By default the loss is cross-entropy and Adam trains what is not frozen, at
    1e-4. `scheduler` is stepped once per epoch (ReduceLROnPlateau gets the validation loss), or
    after every training step as `PerStep(scheduler)`. `clip_grad_norm` limits the norm of all
    gradients together. `compile_model` lets torch.compile make the model faster, which takes a
    minute or more at first; where it cannot, a warning says so.

    `metrics` are functions of (logits (N, C), labels) that give one value per sample, (N,), or
    metrics of torchmetrics; each adds a column per phase to the history: `{"top5": ...}` gives
    `train_top5` and `val_top5`.

    With `run_dir`, that folder holds config.json, history.csv, best.pt and the resume state (see
    `Autosave`): called again with the same parameters, an interrupted run resumes where it was, a
    finished one returns at once, and a larger `num_epochs` adds epochs. `resume=False` refuses
    that. (Persistent workers of loaders that make_dataloaders did not make have random states of
    their own, which are lost.) `first_row` begins the history of a model that was scored before
    (see `fit_head`), which then counts as the best so far. If a batch does not fit into memory, it
    goes through the model in micro-batches.

    Returns the model, in evaluation mode with its best weights (highest validation accuracy, ties
    by lower validation loss), and the history: a DataFrame with one row per epoch and the columns
    epoch, train_loss, train_accuracy, val_loss, val_accuracy, learning_rate, seconds. Losses (nats)
    and accuracies are means over samples; those of training are taken while the weights change.

    However the run ends, the model has its best weights so far. Raises ParameterError for arguments
    that do not fit, TrainingError where training cannot start or a loss is not finite, RunError
    where `run_dir` holds a run with other parameters.
    """
    loaders = _by_phase(dataloaders)
    criterion = criterion or nn.CrossEntropyLoss()
    if isinstance(criterion, nn.Module):
        criterion.to(engine.device())
    network = engine.unwrapped(model)
    state = TrainingState(
        model=model,
        dataloaders=loaders,
        criterion=criterion,
        optimizer=optimizer or _default_optimizer(model),
        scheduler=scheduler,
        num_epochs=num_epochs,
        metrics=metrics or {},
        clip_grad_norm=clip_grad_norm,
        callbacks=with_autosave([*callbacks, ProgressBar()], has_run=run_dir is not None),
        best=BestModel(network, loaders["val"]),
        micro_batches=engine.accelerator().gradient_accumulation_steps,
    )
    check_training(state)
    whole: Any = whole_model(network)
    if classes := class_names(loaders["train"]):
        whole.classes = classes  # which a checkpoint holds
    if run_dir is not None and distributed.is_main():
        parameters = {"training": describe_training(state)}
        run = run_dir if isinstance(run_dir, Run) else Run(run_dir)
        check_images(run, loaders)
        state.run = state.best.run = Run.open(run, parameters, resume=resume)
        record_images(run, loaders)
        state.config = state.run.config

    if hasattr(whole, "arch"):  # convolutions are faster so, but other models may fail
        model.to(memory_format=torch.channels_last)
    model.to(engine.device())
    rates = initial_rates(state.optimizer)
    try:
        with state.run.storage.locked() if state.run else nullcontext():
            _train(state, first_row, compile_model=compile_model)
    finally:
        remember_rates(state.optimizer, rates)
    return network, state.history


def _default_optimizer(model: nn.Module) -> Optimizer:
    return make_optimizer("adam", [{"params": trainable_parameters(model), "lr": 1e-4}])


def _by_phase(dataloaders: Mapping[str, DataLoader]) -> dict[str, DataLoader]:
    """The loaders by "train", "val", ...; their keys may be written "Train", "Val"."""
    if not isinstance(dataloaders, Mapping):
        raise ParameterError(
            f"dataloaders is a {type(dataloaders).__name__}. They come second: "
            "train_model(model, dataloaders, criterion, optimizer, scheduler, num_epochs=25)."
        )
    loaders = {str(name).lower(): loader for name, loader in dataloaders.items()}
    missing = [phase for phase in ("train", "val") if phase not in loaders]
    if missing:
        raise ParameterError(
            f"dataloaders lacks {' and '.join(missing)}. Give a dict of two loaders, as "
            "make_dataloaders returns it."
        )
    return loaders


def _train(state: TrainingState, first_row: Row | None, *, compile_model: bool) -> None:
    """Train what is left; the model has its best weights afterwards, also after an exception."""
    saved = load_resume_state(state)
    if saved is None and first_row is not None:
        state.rows.append(first_row)
        state.best.update(first_row)
        if state.run:
            state.run.save_history(state.history)
    if not state.is_finished:
        check_model(state.model, state.dataloaders["train"], micro_batches=state.micro_batches)
    with _callbacks(state):
        resume_callbacks(state, saved)
        announce(state, saved)
        saved = None  # as large as the run itself
        network = engine.unwrapped(state.model)
        prepared = engine.prepared(state.model, state.optimizer)
        if not state.is_finished:
            with (
                synchronised_batchnorm(network),
                prepared as (net, optimizer),
                engine.compiled(net) if compile_model else nullcontext(net) as fast,
            ):
                while not state.is_finished:
                    _run_epoch(state, fast, optimizer)


@contextmanager
def _callbacks(state: TrainingState) -> Iterator[None]:
    """Begin the callbacks; at the end, give the model its best weights and end each that began.

    One that raises keeps no other from ending. The first exception is raised, and others warned of.
    """
    begun: list[Any] = []
    raised: list[BaseException] = []
    try:
        for callback in state.callbacks:
            begun.append(callback)
            begun[-1].on_fit_begin(state)
        yield
    except BaseException as error:
        raised += [error, *state.notify_all("on_interrupt", begun)]
    try:
        state.best.restore()
    finally:
        raised += state.notify_all("on_fit_end", begun)
    for other in {str(one): one for one in raised[1:] if str(one) != str(raised[0])}.values():
        warnings.warn(f"A callback failed as well: {type(other).__name__}: {other}", stacklevel=3)
    if raised:
        raise raised[0]


def _run_epoch(state: TrainingState, net: nn.Module, optimizer: Optimizer) -> None:
    """Train once on all images, validate, keep the weights if they are the best so far."""
    if state.phase == "train":
        if not state.step:  # otherwise the epoch is resumed
            state.epoch, state.epoch_began = state.epochs_done + 1, time.perf_counter()
            state.row = {"epoch": state.epoch, "learning_rate": state.learning_rate}
            state.notify("on_epoch_begin")
        _train_epoch(state, net, optimizer)
        state.phase = "val"
    _validate(state, engine.alone(net))
    state.phase = "train"
    state.row["seconds"] = time.perf_counter() - state.epoch_began
    state.rows.append(state.row)
    state.is_best = state.best.update(state.row)
    with warnings.catch_warnings():
        # Resumed in a validation, this process has taken no step of the optimizer yet.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        if isinstance(state.scheduler, ReduceLROnPlateau):
            state.scheduler.step(state.row["val_loss"])
        elif state.scheduler is not None and not isinstance(state.scheduler, PerStep):
            state.scheduler.step()
    if state.run:
        state.run.save_history(state.history)
    state.notify("on_epoch_end")
    state.should_stop = distributed.any_of_all(state.should_stop)


def _train_epoch(state: TrainingState, net: nn.Module, optimizer: Optimizer) -> None:
    """Take a step for every batch of the training loader that is left."""
    train_mode(net)
    several = distributed.count() > 1
    with _phase(state):
        for batch in remaining_batches(state):
            state.step += 1
            state.notify("on_step_begin")
            state.output = run_step(
                net,
                batch,
                state.criterion,
                optimizer,
                micro_batches=state.micro_batches,
                before_update=partial(_finish_gradients, state, net, optimizer),
            )
            state.micro_batches = state.output.micro_batches
            if isinstance(state.scheduler, PerStep):
                state.scheduler.step()
            agreed = state.should_stop or not several
            state.notify("on_step_end")
            if state.should_stop and agreed:
                break


def _validate(state: TrainingState, net: nn.Module) -> None:
    """Score the batches of the validation loader that are left; each process scores its own."""
    net.eval()
    with _phase(state), torch.no_grad():
        for batch in remaining_batches(state):
            state.step += 1
            state.notify("on_step_begin")
            state.output = run_step(net, batch, state.criterion, micro_batches=state.micro_batches)
            state.micro_batches = state.output.micro_batches
            sums = state.measure(state.output)
            state.check_loss(sums["loss"])
            state.count(sums, len(state.output.labels))
            state.notify("on_step_end")
        names = sorted(state.sums)  # in a resumed phase, processes may hold them in other orders
        own = [state.sums[name] for name in names]
        *sums_of_all, samples = distributed.total(*own, state.samples)
        state.sums, state.samples = dict(zip(names, sums_of_all, strict=True)), int(samples)


@contextmanager
def _phase(state: TrainingState) -> Iterator[None]:
    """Begin a phase, unless it is resumed, and end it with its means in the row."""
    if not state.step:
        state.begin_phase()
        state.notify("on_phase_begin")
    yield
    state.check_unread_loss()
    state.end_phase()
    state.notify("on_phase_end")
    state.step = 0


def remaining_batches(state: TrainingState) -> Iterator[Batch]:
    """The batches of this phase's loader after the first `state.step` ones."""
    loader, loaders = state.dataloaders[state.phase], state.dataloaders.values()
    for part in (loader, loader.batch_sampler, loader.sampler):
        if set_epoch := getattr(part, "set_epoch", None):
            set_epoch(state.epoch - 1)  # ours and torch's DistributedSampler shuffle by epoch
    if state.step == 0:
        state.rng_before_phase = rng_states(loaders)
        yield from device_batches(loader)
        return
    if state.should_stop and state.phase == "train":
        return
    set_rng_states(state.rng_before_phase or {}, loaders)
    if start_at := getattr(loader.batch_sampler, "start_at", None):
        start_at(state.step)
        batches = device_batches(loader)
    else:  # how the loader makes its batches is not known, so they are drawn again
        batches = device_batches(loader)
        for done in range(state.step):
            if next(batches, None) is None:
                raise TrainingError(
                    f"The {state.phase} loader yields {done} batches, but {state.step} were seen "
                    "before the run was interrupted. Give the loader of then, or choose another "
                    "run_dir."
                )
    set_rng_states(state.rng or {}, loaders)
    yield from batches


def run_step(
    net: nn.Module,
    batch: Batch,
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: Optimizer | None = None,
    *,
    micro_batches: int = 1,
    before_update: Callable[[StepOutput], None] | None = None,
) -> StepOutput:
    """Logits and loss of a batch; with an optimizer, the weights take a step.

    Nothing waits for a GPU's work, as long as the labels are on the processor. The batch goes
    through the model in `micro_batches` parts, whose gradients add up to those of the batch; twice
    as many where memory runs out, and the output says how many it were. (Batch normalisation that
    learns sees the parts.) In several processes, the gradients are those of the batch of all.
    `before_update` is called between backward and the optimizer's step. Raises TrainingError where
    a single image is too much, or the criterion cannot be split.
    """
    while True:
        try:
            output = _forward_backward(net, batch, criterion, optimizer, micro_batches)
            break
        except torch.OutOfMemoryError as error:
            micro_batches = _twice(micro_batches, len(batch[1]), error)
        engine.free_memory()  # here, where the error no longer holds what filled it
    if optimizer is not None:
        if before_update is not None:
            before_update(output)
        optimizer.step()
    return output


def _forward_backward(
    net: nn.Module,
    batch: Batch,
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: Optimizer | None,
    micro_batches: int,
) -> StepOutput:
    images, labels = (tensor.to(engine.device(), non_blocking=True) for tensor in batch)
    number, highest_label = min(micro_batches, len(labels)), _highest_label(batch[1])
    if optimizer is not None:
        optimizer.zero_grad()
        if micro_batches > 1:  # synchronised batch normalisation waits for every part of the others
            number = min(distributed.of_all(number))
    weights = [weight_of(criterion, part) for part in batch[1].tensor_split(number)]
    total = sum(weights)
    of_all = total if optimizer is None else distributed.total(total)[0]
    mean, all_logits = torch.zeros((), device=labels.device), list[Tensor]()
    parts = zip(images.tensor_split(number), labels.tensor_split(number), weights, strict=True)
    for some, true, weight in parts:
        is_last = len(all_logits) == number - 1
        with nullcontext() if is_last or optimizer is None else engine.accelerator().no_sync(net):
            logits = net(some)
            _check_labels(logits, highest_label)
            # Where all labels are ignored, their mean would not be a number.
            loss = criterion(logits, true) if weight else 0 * logits.sum()
            if optimizer is not None:
                share = 1 if adds_up(criterion) else weight / (of_all or 1)
                # Gradients are means over processes.
                engine.backward(loss * (share * distributed.count()))
        mean += loss.detach() * ((1 if adds_up(criterion) else weight) / (total or 1))
        all_logits.append(logits.detach())
    logits = torch.cat(all_logits)
    if optimizer is not None and (number > 1 or distributed.count() > 1):
        check_additive(criterion, logits, labels, mean)
    return StepOutput(images, labels, logits, mean, total, micro_batches)


def _finish_gradients(
    state: TrainingState, net: nn.Module, optimizer: Optimizer, output: StepOutput
) -> None:
    """Count the batch in; between backward and the optimizer's step.

    The one reduction of a step: sums, and what all processes have to know together.
    """
    sums = state.measure(output)
    *sums_of_all, samples, stop, terminated, interrupted, state.time_used = distributed.total(
        *sums.values(),
        len(output.labels),
        state.should_stop,
        state.stop_signal == signal.SIGTERM,
        state.stop_signal == signal.SIGINT,
        state.time_used if distributed.is_main() else 0.0,
    )
    totals = dict(zip(sums, sums_of_all, strict=True))
    state.check_loss(totals["loss"])
    state.count(totals, samples)
    state.should_stop = bool(stop)
    state.stop_signal = signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0
    state.skipped = engine.unscale_gradients(net, optimizer)
    if state.skipped is not None:
        state.count({"skipped_steps": state.skipped.double()}, 0)
    state.notify("on_before_optimizer_step")
    if state.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(net.parameters(), state.clip_grad_norm)


def _twice(micro_batches: int, batch_size: int, error: torch.OutOfMemoryError) -> int:
    """Twice as many micro-batches, and a warning. Raises TrainingError where that does not help."""
    if distributed.count() > 1:  # the others wait for the gradients of this one's share
        raise TrainingError(
            "A process's share of a batch does not fit into memory. Choose a smaller batch_size, "
            "more processes or gradient_accumulation_steps, and run it again."
        ) from error
    if micro_batches >= batch_size:
        raise TrainingError(
            "A single image does not fit into memory. Choose a smaller image_size or arch, or "
            'freeze the early layers: freeze(model, until="layer4").'
        ) from error
    warnings.warn(
        f"{batch_size} images at once do not fit into memory: from now on each batch goes through "
        f"the model in {2 * micro_batches} micro-batches, with the same steps as before.",
        stacklevel=5,
    )
    return 2 * micro_batches


def _highest_label(labels: Tensor) -> int:
    return labels.shape[1] - 1 if labels.ndim == 2 else int(labels.max().cpu().numpy())


def _check_labels(logits: Tensor, highest_label: int) -> None:
    """Raise TrainingError where a label has no output; a GPU would say "device-side assert"."""
    if logits.ndim != 2 or highest_label >= logits.shape[1]:
        raise TrainingError(
            f"The model's output has shape {tuple(logits.shape)}, but there is a label "
            f"{highest_label}. It should be (batch, classes): build the model with num_classes="
            'len(dataloaders["train"].dataset.classes).'
        )
