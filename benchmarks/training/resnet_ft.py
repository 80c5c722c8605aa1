"""This library: what is frozen runs once, and training touches only the rest."""

from functools import partial
from pathlib import Path

import accelerate  # noqa: F401  # train_model imports it when it is first called
from torch import nn
from torch.optim import Adam

from resnet_ft import Callback, TrainingState, freeze, make_dataloaders, precompute, train_model
from training import BATCH_SIZE, IMAGE_SIZE, NUM_WORKERS
from training.clock import Clock


class Laps(Callback):
    """A lap when the first epoch begins and whenever one has ended, with its validation."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_fit_begin(self, state: TrainingState) -> None:
        self.clock.lap()

    def on_epoch_end(self, state: TrainingState) -> None:
        self.clock.lap()


def _train(
    data_dir: Path,
    scratch: Path,
    model: nn.Module,
    clock: Clock,
    *,
    until: str,
    views: int,
    num_epochs: int,
) -> None:
    loaders = make_dataloaders(
        data_dir,
        image_size=IMAGE_SIZE,
        batch_size=BATCH_SIZE,
        num_workers=NUM_WORKERS,
        cache_dir=scratch / "images",
    )
    freeze(model, until=until)
    head, features = precompute(model, loaders, cache_dir=scratch / "features", views=views)
    optimizer = Adam(head.parameters(), lr=1e-3)
    train_model(head, features, optimizer=optimizer, num_epochs=num_epochs, callbacks=[Laps(clock)])


_frozen = partial(_train, until="fc", views=1, num_epochs=10)


def _second_head(data_dir: Path, scratch: Path, model: nn.Module, clock: Clock) -> None:
    """The whole again, from the folder on, with a new head and with what the first run kept."""
    _frozen(data_dir, scratch, model, clock)
    model.fc.reset_parameters()
    clock.restart()
    _frozen(data_dir, scratch, model, clock)


RECIPES = {
    "frozen": _frozen,
    "second head": _second_head,
    "layer4": partial(_train, until="layer4", views=2, num_epochs=4),
}
