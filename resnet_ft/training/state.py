"""What `train_model` works on, how far it has come, and the best weights so far."""

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from resnet_ft import distributed
from resnet_ft.errors import CheckpointError, ParameterError, RunError, TrainingError
from resnet_ft.models.checkpoint import load_checkpoint, save_checkpoint
from resnet_ft.reading import reading
from resnet_ft.training.criterion import check_criterion
from resnet_ft.training.rng import RngStates, rng_states
from resnet_ft.training.run import Run, history_of
from resnet_ft.training.schedule import check_scheduler

Row = dict[str, float]
Sums = dict[str, Any]  # numbers, or scalars on the device that nobody waits for within a phase
Metric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepOutput:
    """What a step made of a batch, on the device.

    `images` (N, 3, H, W), `labels` (N,) or, mixed, probabilities (N, C), `logits` (N, C) without
    gradients, `loss` their mean loss, a scalar, and `weight` what that mean divides by: N, unless
    the criterion weighs or ignores labels.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    loss: Tensor
    weight: float
    micro_batches: int = 1


@dataclass(kw_only=True)
class Progress:
    """How far a run has come: what a resume state holds beside weights and callbacks."""

    num_epochs: int
    epoch: int = 1
    phase: str = "train"
    step: int = 0  # of this phase: how many have begun
    sums: Sums = field(default_factory=dict)  # of this phase, over `samples`
    samples: int = 0
    row: Row = field(default_factory=dict)  # of the present epoch
    rows: list[Row] = field(default_factory=list)
    is_best: bool = False
    should_stop: bool = False
    micro_batches: int = 1  # a batch goes through the model in so many parts
    epoch_seconds: float = 0.0  # that the epoch had taken when it was saved
    rng: RngStates | None = None  # as it was when it was saved
    rng_before_phase: RngStates | None = None

    def state_dict(self) -> dict[str, Any]:
        """A copy, small enough to be made after every step."""
        copied = {one.name: getattr(self, one.name) for one in fields(Progress)}
        return copied | {"sums": dict(self.sums), "row": dict(self.row), "rows": list(self.rows)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave. Raises TypeError for values of other kinds."""
        for one in fields(Progress):
            value, present = saved[one.name], getattr(self, one.name)
            if present is not None and type(value) is not type(present):
                raise TypeError(f"{one.name} is {value!r}")
            setattr(self, one.name, value)
        if self.phase not in ("train", "val") or min(self.step, self.epoch, self.micro_batches) < 0:
            raise ValueError(f"phase {self.phase!r}, epoch {self.epoch}, step {self.step}")

    @property
    def is_finished(self) -> bool:
        """Whether no epoch is left to train, or a callback has ended the run."""
        between_epochs = self.phase == "train" and not self.step
        return self.epochs_done >= self.num_epochs or (self.should_stop and between_epochs)

    @property
    def epochs_done(self) -> int:
        """The number of complete epochs."""
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    @property
    def history(self) -> pd.DataFrame:
        """One row per complete epoch; the columns of metrics and callbacks come last."""
        return history_of(self.rows)


@dataclass(kw_only=True)
class TrainingState(Progress):
    """What `train_model` works on; callbacks read it and may change model and optimizer.

    To end the run a callback sets `should_stop`: the pass over the training images is cut short,
    validation follows. What it adds to `row` at the end of a phase is kept in the history. From
    each step's end on, `output` is what the step made of its batch.
    """

    model: nn.Module
    dataloaders: dict[str, DataLoader]
    criterion: Callable[[Tensor, Tensor], Tensor]
    optimizer: Optimizer
    scheduler: Any = None  # a scheduler of torch.optim, or PerStep
    metrics: Mapping[str, Any] = field(default_factory=dict)
    clip_grad_norm: float | None = None
    callbacks: Sequence[object] = ()
    run: Run | None = None
    config: dict[str, object] | None = None  # of the run
    best: "BestModel"
    saves: int = 0  # how many resume states were written
    output: StepOutput | None = None
    unread_loss: "UnreadLoss | None" = None  # of the last step on a GPU
    skipped: Tensor | None = None  # in float16: whether the gradients were no numbers, so no step
    # Of several processes, as all of them know it since the last step's reduction:
    stop_signal: int = 0  # a signal that asks the process to end
    time_used: float = 0.0  # the share of a TimeBudget, by the main process's clock

    def notify(self, event: str) -> None:
        """Call one hook of every callback, in their order."""
        for callback in self.callbacks:
            getattr(callback, event)(self)

    def notify_all(self, event: str, callbacks: Sequence[object]) -> list[BaseException]:
        """Call a hook of each of these callbacks, whatever the others raise; returns that."""
        raised: list[BaseException] = []
        for callback in callbacks:
            try:
                getattr(callback, event)(self)
            except BaseException as error:
                raised.append(error)
        return raised

    def state_dict(self) -> dict[str, Any]:
        """A copy of the progress as it is now, with the state of metrics and generators."""
        now = {
            "rng": rng_states(self.dataloaders.values()),
            "epoch_seconds": time.perf_counter() - self.epoch_began,
            "metrics": {name: one.state_dict() for name, one in self.accumulating.items()},
        }
        return super().state_dict() | now

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from there, with the generators still to be set."""
        super().load_state_dict(saved)
        self.epoch_began = time.perf_counter() - self.epoch_seconds
        for name, state in saved.get("metrics", {}).items():
            self.accumulating[name].load_state_dict(state)

    def __post_init__(self) -> None:
        self.epoch_began = time.perf_counter()
        self.per_sample: dict[str, Metric] = {"accuracy": is_correct}  # which give one value each
        self.accumulating: dict[str, Any] = {}  # which count by themselves, as torchmetrics' do
        for name, metric in self.metrics.items():
            if hasattr(metric, "compute"):
                metric.persistent(True)
                self.accumulating[name] = metric
            else:
                self.per_sample[name] = metric

    def begin_phase(self) -> None:
        """Count from zero."""
        self.sums = dict.fromkeys(("loss", "weight", *self.per_sample), 0.0)
        self.samples = 0
        for metric in self.accumulating.values():
            metric.reset()

    def measure(self, output: StepOutput) -> Sums:
        """The sums over a batch's samples of the loss and of every metric."""
        for metric in self.accumulating.values():
            metric.to(output.logits.device).update(output.logits, output.labels)
        sums = {"loss": _exactly(output.loss) * output.weight, "weight": output.weight}
        for name, metric in self.per_sample.items():
            sums[name] = _sum(name, metric(output.logits, output.labels), len(output.labels))
        return sums

    def count(self, sums: Sums, samples: float) -> None:
        """Add the sums of a batch."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.samples += int(samples)

    def check_loss(self, loss: float | Tensor) -> None:
        """Raise TrainingError, with what to try, for a loss that is infinite or not a number.

        One on a GPU is looked at in the next step, or by `check_unread_loss`.
        """
        present = UnreadLoss.of(loss, f"epoch {self.epoch}, step {self.step}")
        previous, self.unread_loss = self.unread_loss, present
        if previous is not None:
            self._check(previous)
        if present.ready is None:
            self.check_unread_loss()

    def check_unread_loss(self) -> None:
        """Look at the last loss now, whatever that waits for."""
        present, self.unread_loss = self.unread_loss, None
        if present is not None:
            self._check(present)

    def _check(self, loss: "UnreadLoss") -> None:
        if not math.isfinite(value := loss.read()):
            kept = (
                "The model has its best weights so far." if self.rows else "No epoch is complete."
            )
            raise TrainingError(
                f"The {self.phase} loss became {value} in {loss.place}. Try a learning rate ten "
                f"times lower (now {self.learning_rate:g}), and look for broken images or labels "
                f"with notebook 02. {kept}"
            )

    def end_phase(self) -> None:
        """Put the means over all samples into the row."""
        self.sums = {name: float(value) for name, value in self.sums.items()}
        if not self.samples:
            raise TrainingError(
                f"The {self.phase} loader yields no batch. Has it less than one, with drop_last?"
            )
        if not (weight := self.sums.pop("weight")):
            raise TrainingError(
                f"The criterion ignores every label of the {self.phase} loader, or gives its class "
                "no weight. Check ignore_index and weight."
            )
        skipped = {name: self.sums.pop(name) for name in ("skipped_steps",) if name in self.sums}
        means = {name: value / self.samples for name, value in self.sums.items()}
        means["loss"] = self.sums["loss"] / weight
        means |= {name: float(one.compute()) for name, one in self.accumulating.items()}
        self.row |= {f"{self.phase}_{name}": mean for name, mean in means.items()} | skipped

    @property
    def learning_rate(self) -> float:
        """The highest of the parameter groups."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    @property
    def steps_per_epoch(self) -> dict[str, int] | None:
        """Batches of training and of validation, where the loaders know."""
        try:
            return {phase: len(self.dataloaders[phase]) for phase in ("train", "val")}
        except TypeError:  # a stream has no length
            return None


def most_likely(labels: Tensor) -> Tensor:
    """Labels (N,) of a batch whose labels are numbers (N,) or, mixed, probabilities (N, C)."""
    return labels.argmax(dim=1) if labels.ndim == 2 else labels


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the most likely class is the label's: (N,), the metric "accuracy"."""
    return logits.argmax(dim=1) == most_likely(labels)


@dataclass(frozen=True)
class UnreadLoss:
    """A loss, and where it came up. From a GPU it is being copied: `ready` is when it is here."""

    value: Tensor
    ready: Any
    place: str

    @classmethod
    def of(cls, loss: float | Tensor, place: str) -> "UnreadLoss":
        """Begin to copy a loss, without waiting for it."""
        value = torch.as_tensor(loss).detach()
        if not value.is_cuda:
            return cls(value, None, place)
        here = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        ready = torch.cuda.Event()
        here.copy_(value, non_blocking=True)
        ready.record()
        return cls(here, ready, place)

    def read(self) -> float:
        """The number, once it is here."""
        if self.ready is not None:
            self.ready.synchronize()
        return float(self.value.cpu().numpy())


def _exactly(value: Tensor) -> Tensor:
    """A scalar in double precision, where the device has it: sums of many lose nothing."""
    return value.double() if value.device.type != "mps" else value.float()


def _sum(name: str, values: Tensor, samples: int) -> Tensor:
    if tuple(values.shape) != (samples,):
        raise ParameterError(
            f"The metric {name!r} gave values of shape {tuple(values.shape)} for {samples} samples."
            " Return one value per sample, shape (N,): the mean over all of them is taken here."
        )
    return _exactly(values.detach().sum())


class BestModel:
    """The weights with the highest validation accuracy, ties by lower loss: in memory, and in
    best.pt where there is a run."""

    def __init__(self, model: nn.Module, val: DataLoader):
        self.run: Run | None = None
        self._model = model
        self._preprocessing = getattr(val.dataset, "preprocessing", None)
        self._scores: Row = {}
        self._weights: dict[str, Tensor] = {}

    def update(self, row: Row, model: nn.Module | None = None) -> bool:
        """Keep the weights if this row of the history is the best so far; say whether it is.

        `model` is another one with the same layers, where not the trained one itself was scored.
        """
        if self._scores and _rank(row) <= _rank(self._scores):
            return False
        self._keep(row, model)
        return True

    def update_by_loss(self, row: Row, model: nn.Module) -> bool:
        """Keep the weights of `model` if their validation loss is below that of the best so far."""
        if not row["val_loss"] < self._scores["val_loss"]:
            return False
        self._keep(row, model)
        return True

    def _keep(self, row: Row, model: nn.Module | None) -> None:
        self._scores = {name: float(value) for name, value in row.items()}
        model = self._model if model is None else model
        self._weights = self._copy(model)
        self._save(whole_model(model).state_dict())

    def _copy(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: one.detach().cpu().clone() for name, one in model.state_dict().items()}

    def restore(self) -> None:
        """Give the model its best weights; it keeps its own before the first epoch's end."""
        if self._weights:
            self._model.load_state_dict(self._weights)
        whole_model(self._model).eval()
        self._model.eval()

    def state_dict(self) -> dict[str, Any]:
        """The best weights and their scores."""
        return {"scores": self._scores, "weights": self._weights}

    def completed(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state with the weights of best.pt, where a finished run has them only there.

        The model gets them too. Raises RunError where best.pt is not the one of that run, and
        RuntimeError where the model is another.
        """
        if state["weights"] or not state["scores"] or self.run is None:
            return state
        remedy = "Put the file of this run back, or choose another run_dir."
        with reading(self.run.best, RunError, remedy):
            checkpoint = load_checkpoint(self.run.best)
            if _rank(checkpoint.scores) != _rank(state["scores"]):
                raise ValueError("it is not the best model of this run")
        whole_model(self._model).load_state_dict(checkpoint.state_dict)
        return {**state, "weights": self._copy(self._model)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave; write best.pt again if it was lost."""
        self._scores, self._weights = state["scores"], state["weights"]
        if self._weights and self.run is not None and not self._is_saved(self.run):
            self._model.load_state_dict(self._weights)
            self._save(whole_model(self._model).state_dict())

    def _is_saved(self, run: Run) -> bool:
        try:
            return _rank(load_checkpoint(run.best).scores) == _rank(self._scores)
        except (CheckpointError, KeyError):  # lost, or half written when the process was killed
            return False

    def _save(self, weights: dict[str, Tensor]) -> None:
        def save(path: Path) -> None:
            save_checkpoint(
                path,
                whole_model(self._model),
                preprocessing=self._preprocessing,
                scores=self._scores,
                state_dict=weights,
            )

        if self.run is not None:
            self.run.write(self.run.best.name, save)


def _rank(scores: Mapping[str, float]) -> tuple[float, float]:
    return scores["val_accuracy"], -scores["val_loss"]


def whole_model(model: nn.Module) -> nn.Module:
    """The model that a head, which trains on precomputed features, is a part of."""
    whole: nn.Module = getattr(model, "full_model", model)
    return whole


def check_training(state: TrainingState) -> None:
    """Raise TrainingError or ParameterError for what would waste a run."""
    if not isinstance(state.num_epochs, int) or state.num_epochs < 0:
        raise ParameterError(f"num_epochs={state.num_epochs!r} should be a whole number.")
    if taken := {"loss", "accuracy", "weight", "skipped_steps"} & set(state.metrics):
        raise ParameterError(f"The history has its own {', '.join(taken)}: rename your metric.")
    if isinstance(getattr(whole_model(state.model), "classes", None), nn.Module):
        raise ParameterError(
            "A layer of the model is called classes, where the names of the classes are kept for "
            "its checkpoint. Give the layer another name."
        )
    check_criterion(state.criterion)
    steps = (state.steps_per_epoch or {}).get("train")
    check_scheduler(state.scheduler, state.num_epochs, steps)
    if state.clip_grad_norm is not None and not state.clip_grad_norm > 0:
        raise ParameterError(f"clip_grad_norm={state.clip_grad_norm} should be positive, or None.")
    check_shares(state.dataloaders)
    loaders = (state.dataloaders[phase] for phase in ("train", "val"))
    train, val = (getattr(loader.dataset, "classes", None) for loader in loaders)
    if train is not None and val is not None and list(train) != list(val):
        raise TrainingError(
            f"The training classes {train} and the validation classes {val} differ, so their "
            "labels do not mean the same. Make both loaders with make_dataloaders."
        )
    check_optimizer(state.model, state.optimizer)


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise TrainingError where the optimizer has nothing to train."""
    trained = {id(one) for group in optimizer.param_groups for one in group["params"]}
    step = inspect.signature(type(optimizer).step).parameters.get("closure")
    if step is not None and step.default is step.empty:
        raise ParameterError(
            f"{type(optimizer).__name__} computes a loss several times per step, which "
            "train_model does not do. Choose another optimizer, such as AdamW."
        )
    if trained.isdisjoint(map(id, trainable_parameters(model))):
        raise TrainingError(
            "The optimizer holds none of the layers that train. Make it after the model is built "
            "and frozen: Adam(p for p in model.parameters() if p.requires_grad)."
        )


def check_shares(dataloaders: Mapping[str, DataLoader]) -> None:
    """Each process needs an image of each batch; with fewer it would wait for ever."""
    count = distributed.count()
    sizes = {"batch_size": getattr(dataloaders["train"].batch_sampler, "batch_size", None)}
    for phase, loader in dataloaders.items():
        sizes[f"the number of {phase} images"] = getattr(loader.batch_sampler, "num_samples", None)
    for name, size in sizes.items():
        if size is not None and size < count:
            raise ParameterError(f"{name} is {size}, for {count} processes. Start fewer of them.")


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen. Raises TrainingError where there are none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise TrainingError("Every layer is frozen. Call unfreeze(model) or freeze(model, 'fc').")
    return parameters
