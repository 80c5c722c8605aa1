"""Where a run stands: what trains on what, and how far it has come."""

import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from resnet_ft import distributed
from resnet_ft.errors import CheckpointError, ParameterError, TrainingError
from resnet_ft.models.checkpoint import load_checkpoint, save_checkpoint
from resnet_ft.training.run import Run


class BestModel:
    """Keeps the weights with the highest validation accuracy, ties by lower loss."""

    def __init__(self, model: nn.Module, val: DataLoader, run: Run | None = None):
        self._model = model
        self._preprocessing = getattr(val.dataset, "preprocessing", None)
        self._run = run
        self._scores: dict[str, float] = {}
        self._weights: dict[str, Tensor] = {}

    def update(self, row: dict[str, float], model: nn.Module | None = None) -> bool:
        """Keep the weights if this row of the history is the best so far; say whether it is.

        `model` is another network of the same layers, where not the trained one itself was scored.
        """
        if self._scores and _rank(row) <= _rank(self._scores):
            return False
        self._scores = {name: float(value) for name, value in row.items()}
        model = self._model if model is None else model
        tensors = model.state_dict()
        self._weights = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        self._save(whole_model(model).state_dict())
        return True

    def restore(self) -> None:
        """Give the model its best weights back; before the first epoch's end it keeps its own."""
        if self._weights:
            self._model.load_state_dict(self._weights)
        whole_model(self._model).eval()
        self._model.eval()

    def state_dict(self) -> dict[str, object]:
        """The best weights and their scores."""
        return {"scores": self._scores, "weights": self._weights}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from what `state_dict` gave; what best.pt has lost passes through the model."""
        self._scores, self._weights = state["scores"], state["weights"]
        if self._weights and self._run is not None and not self._is_saved():
            self._model.load_state_dict(self._weights)
            self._save(whole_model(self._model).state_dict())

    def _is_saved(self) -> bool:
        try:
            return _rank(load_checkpoint(self._run.best).scores) == _rank(self._scores)
        except CheckpointError:  # lost, or written by half when the process was killed
            return False

    def _save(self, weights: dict[str, Tensor]) -> None:
        if self._run is None:
            return

        def save(path: Path) -> None:
            save_checkpoint(
                path,
                whole_model(self._model),
                preprocessing=self._preprocessing,
                scores=self._scores,
                state_dict=weights,
            )

        self._run.storage.write(self._run.best.name, save)


def _rank(scores: dict[str, float]) -> tuple[float, float]:
    return scores["val_accuracy"], -scores["val_loss"]


def whole_model(model: nn.Module) -> nn.Module:
    """The network that a part of it, which trains on precomputed features, belongs to."""
    return getattr(model, "full_model", model)


_COLUMNS = (
    *("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("learning_rate", "seconds"),
)


@dataclass
class TrainingState:
    """What `train_model` works on; its callbacks read it and may change model and optimizer.

    A callback sets `should_stop` to end the run: the present pass over the training images is cut
    short, validation follows. What it adds to `row` at the end of a phase is kept in the history.
    """

    model: nn.Module
    dataloaders: dict[str, DataLoader]
    criterion: Callable
    optimizer: Optimizer
    scheduler: LRScheduler | ReduceLROnPlateau | None
    num_epochs: int
    callbacks: Sequence[object] = ()
    run: Run | None = None
    config: dict[str, object] | None = None  # of the run
    best: BestModel | None = None
    epoch: int = 1
    phase: str = "train"
    step: int = 0  # in this phase: how many have begun
    loss_sum: float = 0.0  # of this phase, over `count` samples, like `correct`
    correct: int = 0
    count: int = 0
    row: dict[str, float] = field(default_factory=dict)  # of the present epoch
    rows: list[dict[str, float]] = field(default_factory=list)
    is_best: bool = False
    should_stop: bool = False
    epoch_began: float = 0.0  # by time.perf_counter()
    saves: int = 0  # how often where the run stands was saved
    micro_batches: int = 1  # parts that a batch goes through the network in
    # What draws at random, as it was before this phase; of a run that goes on, as it has to be.
    generators_before: dict[str, object] | None = None
    generators_now: dict[str, object] | None = None

    def add(self, loss_sum: float, correct: float, count: float) -> None:
        """Count a batch in: the sum of its losses, how many were right, of how many."""
        self.loss_sum, self.correct = self.loss_sum + loss_sum, self.correct + correct
        self.count += count

    def share(self) -> None:
        """Let all processes know what they counted together."""
        self.loss_sum, self.correct, self.count = distributed.total(
            self.loss_sum, self.correct, self.count
        )

    @property
    def is_finished(self) -> bool:
        """Whether no epoch is left to train, or a callback has ended the run."""
        between_epochs = self.phase == "train" and not self.step
        return self.epochs_done >= self.num_epochs or (self.should_stop and between_epochs)

    @property
    def epochs_done(self) -> int:
        """How many epochs are complete."""
        return self.rows[-1]["epoch"] if self.rows else 0

    @property
    def history(self) -> pd.DataFrame:
        """The epochs that are complete, a row each; columns that callbacks added come last."""
        history = pd.DataFrame(self.rows)
        first = [name for name in _COLUMNS if name in history]
        return history[first + [name for name in history if name not in first]]

    @property
    def learning_rate(self) -> float:
        """The highest of the parameter groups."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    @property
    def steps_per_epoch(self) -> dict[str, int] | None:
        """Batches of training and of validation, where the loaders know."""
        try:
            return {phase: len(self.dataloaders[phase]) for phase in ("train", "val")}
        except TypeError:  # a stream has no length
            return None


def describe_training(state: TrainingState) -> dict[str, object]:
    """What `train_model` was called with, as plain data."""
    model, loader = whole_model(state.model), state.dataloaders["train"]
    dataset = loader.dataset
    return {
        "arch": getattr(model, "arch", type(model).__name__),
        "pretrained": getattr(model, "pretrained", None),
        "classes": getattr(dataset, "classes", None),
        "images": {split: _length(loader) for split, loader in state.dataloaders.items()},
        "data_fingerprint": getattr(dataset, "fingerprint", None),
        "preprocessing": getattr(dataset, "preprocessing", None),
        "batch_size": getattr(loader.batch_sampler, "batch_size", loader.batch_size),
        "criterion": _described(state.criterion),
        "optimizer": type(state.optimizer).__name__,
        "optimizer_options": state.optimizer.defaults | _of_groups(state.optimizer),
        "scheduler": state.scheduler and type(state.scheduler).__name__,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "num_epochs": state.num_epochs,
    }


def _of_groups(optimizer: Optimizer) -> dict[str, float]:
    """What groups of parameters have in place of the defaults, at its highest."""
    groups = optimizer.param_groups
    rates = [group.get("initial_lr", group["lr"]) for group in groups]
    return {"lr": max(rates), "weight_decay": max(group.get("weight_decay", 0) for group in groups)}


def _described(criterion: Callable) -> str:
    """The same in every process: a function's `repr` has its address."""
    return getattr(criterion, "__qualname__", None) or repr(criterion)


def _length(loader: DataLoader) -> int | None:
    return len(loader.dataset) if isinstance(loader.dataset, Sized) else None


def check_training(state: TrainingState) -> None:
    """Raise TrainingError or ParameterError for what would waste a run."""
    if not isinstance(state.num_epochs, int) or state.num_epochs < 0:
        raise ParameterError(f"num_epochs={state.num_epochs!r} should be a whole number.")
    missing = [phase for phase in ("train", "val") if phase not in state.dataloaders]
    if missing:
        raise ParameterError(
            f"dataloaders lacks {' and '.join(missing)}. Give a dict of two loaders, as "
            "make_dataloaders returns it."
        )
    _check_shares(state)
    trainable = {id(parameter) for parameter in trainable_parameters(state.model)}
    classes = [getattr(state.dataloaders[p].dataset, "classes", None) for p in ("train", "val")]
    if None not in classes and list(classes[0]) != list(classes[1]):
        raise TrainingError(
            f"The training classes {classes[0]} and the validation classes {classes[1]} differ, so "
            "their labels do not mean the same. Make both loaders with make_dataloaders."
        )
    held = {
        id(parameter) for group in state.optimizer.param_groups for parameter in group["params"]
    }
    if not trainable & held:
        raise TrainingError(
            "The optimizer holds none of the layers that train. Make it after the model is built "
            "and frozen: Adam(p for p in model.parameters() if p.requires_grad)."
        )


def _check_shares(state: TrainingState) -> None:
    """Every process needs an image of each batch; with fewer it would wait for ever."""
    count = distributed.count()
    sizes = {"batch_size": getattr(state.dataloaders["train"].batch_sampler, "batch_size", None)}
    for phase, loader in state.dataloaders.items():
        sizes[f"the number of {phase} images"] = getattr(loader.batch_sampler, "num_samples", None)
    for name, size in sizes.items():
        if size is not None and size < count:
            raise ParameterError(f"{name} is {size}, for {count} processes. Take fewer of them.")


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen. Raises TrainingError where there are none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise TrainingError("Every layer is frozen. Call unfreeze(model) or freeze(model, 'fc').")
    return parameters


def likeliest(labels: Tensor) -> Tensor:
    """Labels (N,) of batches whose labels are numbers (N,) or, mixed, probabilities (N, C)."""
    return labels.argmax(dim=1) if labels.ndim == 2 else labels


def check_batch(logits: Tensor, labels: Tensor) -> None:
    """Raise TrainingError where a label has no output; a GPU would say "device-side assert"."""
    highest_label = labels.shape[1] - 1 if labels.ndim == 2 else int(labels.max())
    if logits.ndim != 2 or highest_label >= logits.shape[1]:
        raise TrainingError(
            f"The model's output has shape {tuple(logits.shape)}, but there is a label "
            f"{highest_label}. It should be (batch, classes): build the model with num_classes="
            'len(dataloaders["train"].dataset.classes).'
        )


def check_finite(loss: float, state: TrainingState) -> None:
    """Raise TrainingError, with what to try, for a loss that is infinite or not a number."""
    if not math.isfinite(loss):
        kept = "The model has its best weights so far." if state.rows else "No epoch was completed."
        raise TrainingError(
            f"The {state.phase} loss became {loss} in epoch {state.epoch}, step {state.step}. Try "
            f"a learning rate ten times lower (now {state.learning_rate:g}), and look for broken "
            f"images or labels with notebook 02. {kept}"
        )


def check_not_empty(state: TrainingState) -> None:
    """Raise TrainingError for a loader that delivered nothing."""
    if not state.count:
        raise TrainingError(
            f"The {state.phase} loader delivers nothing. Has it fewer than a batch, with drop_last?"
        )
