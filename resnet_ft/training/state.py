"""Where a run stands: what trains on what, and how far it has come."""

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field

import pandas as pd
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from resnet_ft import processes
from resnet_ft.training.best import BestModel, whole_model
from resnet_ft.training.runs import Run

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
        self.loss_sum, self.correct, self.count = processes.total(
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
