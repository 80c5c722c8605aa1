"""Where a run stands: what trains on what, and how far it has come."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader


@dataclass
class TrainingState:
    """What `train_model` works on; its callbacks read it and may change model and optimizer."""

    model: nn.Module
    dataloaders: dict[str, DataLoader]
    criterion: Callable
    optimizer: Optimizer
    scheduler: LRScheduler | ReduceLROnPlateau | None
    num_epochs: int
    epoch: int = 0  # counted from 1
    phase: str = "train"
    step: int = 0  # in this phase, counted from 1
    rows: list[dict[str, float]] = field(default_factory=list)
    is_best: bool = False

    @property
    def history(self) -> pd.DataFrame:
        """The epochs that are complete, a row each."""
        return pd.DataFrame(self.rows)

    @property
    def learning_rate(self) -> float:
        """The highest of the parameter groups."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    @property
    def total_steps(self) -> int | None:
        """Batches of the whole run, those of validation included, where the loaders know."""
        try:
            return self.num_epochs * sum(len(self.dataloaders[phase]) for phase in ("train", "val"))
        except TypeError:  # a stream has no length
            return None
