"""fastai: a Learner that freezes parameter groups, as vision_learner makes it, and fit_one_cycle.

By default it trains the BatchNorm weights of frozen groups (`train_bn=True`), so that its backward
pass goes through all layers. Its loaders start their workers anew each epoch.
"""

from functools import partial
from pathlib import Path

import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner  # with fit_one_cycle
from fastai.metrics import accuracy
from fastai.vision.augment import Flip, RandomResizedCrop
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageDataLoaders, Normalize
from torch import nn

from training import BATCH_SIZE, EPOCHS, IMAGE_SIZE, NUM_WORKERS
from training.clock import Clock

_FROZEN_TO = {"frozen": -1, "layer4": -2}  # the first parameter group that trains


class _Laps(Callback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def before_fit(self) -> None:
        self.clock.lap()

    def after_epoch(self) -> None:
        self.clock.lap()


def _train(data_dir: Path, scratch: Path, model: nn.Module, clock: Clock, *, recipe: str) -> None:
    dataloaders = ImageDataLoaders.from_folder(
        data_dir,
        train="Train",
        valid="Val",
        item_tfms=RandomResizedCrop(IMAGE_SIZE),
        batch_tfms=[Flip(), Normalize.from_stats(*imagenet_stats, cuda=False)],
        bs=BATCH_SIZE,
        num_workers=NUM_WORKERS,
        device=torch.device("cpu"),
    )
    learner = Learner(
        dataloaders,
        model,
        loss_func=nn.CrossEntropyLoss(),
        splitter=_parameter_groups,
        metrics=accuracy,
        path=scratch,
    )
    learner.freeze_to(_FROZEN_TO[recipe])
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(EPOCHS, 1e-3, cbs=_Laps(clock))


def _parameter_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """All before layer4, layer4, and the head."""
    layers = dict(model.named_children())
    groups = [layers.pop("layer4"), layers.pop("fc")]
    return [list(part.parameters()) for part in (nn.ModuleList(layers.values()), *groups)]


RECIPES = {recipe: partial(_train, recipe=recipe) for recipe in _FROZEN_TO}
