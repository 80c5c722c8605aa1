"""fine_tune: the head first, on features that are computed once, then the whole network from there.

Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution",
ICLR 2022: a network whose head is right before its other layers move keeps more of what it knows.
"""

import time
from collections.abc import Sequence
from os import PathLike

import pandas as pd
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader

from resnet_ft import engine, processes
from resnet_ft.data.exchange import reads_files
from resnet_ft.errors import ParameterError
from resnet_ft.models.freezing import freeze_batchnorm, kept_trainable
from resnet_ft.models.groups import parameter_groups
from resnet_ft.training.averaging import WeightAverage
from resnet_ft.training.balance import balanced_loader, class_weights
from resnet_ft.training.budget import TimeBudget
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.checks import trainable_parameters
from resnet_ft.training.head_phase import HeadFirst, fit_head
from resnet_ft.training.loop import train_model
from resnet_ft.training.mixing import MixedLoader
from resnet_ft.training.pace import paced
from resnet_ft.training.starting import start_run
from resnet_ft.training.steering import EarlyStop

_LEARNING_RATE = 3e-4  # of the head, for AdamW
_FIRST_LAYER = 0.1  # of that, for the first layer
_FROM_RANDOM = 1e-3  # of all layers, where weights are random
_RECORDED = (
    *("epochs", "minutes", "learning_rate", "weight_decay", "label_smoothing", "mix", "balance"),
    *("train_batchnorm", "average_weights", "patience", "seed"),
)


def fine_tune(
    model: nn.Module,
    dataloaders: dict[str, DataLoader],
    *,
    epochs: int | None = None,
    minutes: float | None = None,
    learning_rate: float | None = None,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.0,
    mix: str | None = None,
    balance: str | None = None,
    train_batchnorm: bool = False,
    average_weights: bool = True,
    patience: int | None = None,
    seed: int = 0,
    run_dir: str | PathLike | None = None,
    resume: str | bool = "auto",
    cache_dir: str | PathLike | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[nn.Module, pd.DataFrame]:
    """Solve the head, then train all layers from there; keep the best of all on validation.

    1. The head, on what the other layers put out, computed once (see `precompute`; `cache_dir`). A
       Linear layer is solved as the convex problem that it is. This is epoch 0 of the history, with
       cross-validated training columns; `run_dir` also gets head_predictions.csv: what heads fitted
       to other images said of each training image. Networks with random weights begin with 2.
    2. What is not frozen trains with AdamW: the first layers at a tenth of `learning_rate`, with
       warm-up, cosine decay and standing BatchNorm. An average of the weights is scored as well.
    3. Of head, epochs and averages the model gets the best by validation (see `train_model`).

    `epochs`: by default 5, from random weights 25; 0 stops after the head. `minutes`, in their
    place, is what all of it may take. `mix`: "mixup", "cutmix" or "both". `balance`: "loss" or
    "sampler", for classes of unequal size. `patience`: end after so many epochs without a lower
    validation loss. How strongly images are varied is for `make_dataloaders(train=...)` to say.

    Called again with the same options and `run_dir`, a run goes on where it was, and a finished one
    returns at once; `minutes` count over all of it. Returns the model and the history as
    `train_model` does, and raises what it and `precompute` do.
    """
    chosen = {name: value for name, value in locals().items() if name in _RECORDED}
    started = time.perf_counter()
    pretrained = getattr(model, "pretrained", True)
    _check(model, dataloaders, pretrained, epochs, minutes, learning_rate, balance)
    loaders = {**dataloaders, "train": _varied(dataloaders["train"], balance, mix, seed)}
    weights = _class_weights(dataloaders["train"]) if balance else None
    criterion = nn.CrossEntropyLoss(
        weights if balance == "loss" else None, label_smoothing=label_smoothing
    ).to(engine.device())
    watchers = [WeightAverage()] if average_weights else []
    watchers += [*callbacks, *([] if patience is None else [EarlyStop(patience)])]
    budget = None if minutes is None else TimeBudget(minutes, started=started)
    goes_on = False
    if run_dir is not None and processes.is_main():
        run_dir = start_run(run_dir, resume=resume, fine_tune=chosen)
        goes_on = run_dir.can_continue
        if goes_on and budget:
            epochs = run_dir.config["training"]["num_epochs"]
    goes_on, epochs = processes.from_main((goes_on, epochs))
    with kept_trainable(model):
        if pretrained and not goes_on:
            head = fit_head(
                model, dataloaders, criterion, class_weights=weights, cache_dir=cache_dir, seed=seed
            )
            watchers.insert(0, HeadFirst(*head))
        if pretrained and not train_batchnorm:
            freeze_batchnorm(model)
        optimizer = _optimizer(model, learning_rate, weight_decay, pretrained)
        epochs, pacing = paced(model, loaders, optimizer, epochs=epochs, budget=budget)
        watchers += pacing
        return train_model(
            model, loaders, criterion, optimizer, None, epochs, run_dir=run_dir, callbacks=watchers
        )


def _check(
    model: nn.Module,
    dataloaders: dict[str, DataLoader],
    pretrained: bool,
    epochs: int | None,
    minutes: float | None,
    learning_rate: float | None,
    balance: str | None,
) -> None:
    """Refuse what could not work, before any work is done; other options check themselves."""
    trainable_parameters(model)
    loaders = [dataloaders.get(split) for split in ("train", "val")]
    if not all(map(reads_files, loaders)):
        raise ParameterError(
            'fine_tune takes loaders "train" and "val" that make_dataloaders makes of image files. '
            "With others, of shards too, use train_model."
        )
    if epochs is not None and minutes is not None:
        raise ParameterError("Give epochs or minutes, not both.")
    if epochs is not None and (not isinstance(epochs, int) or epochs < 0):
        raise ParameterError(f"epochs={epochs!r} should be a whole number, or None.")
    if epochs == 0 and not pretrained:
        raise ParameterError("epochs=0 stops after the head, which random weights have no use for.")
    if learning_rate is not None and not learning_rate > 0:
        raise ParameterError(f"learning_rate={learning_rate} should be positive, or None.")
    if balance not in (None, "loss", "sampler"):
        raise ParameterError(f'balance={balance!r} is unknown. Choose None, "loss" or "sampler".')


def _class_weights(loader: DataLoader) -> Tensor:
    return class_weights(loader.dataset.labels, len(loader.dataset.classes))


def _optimizer(
    model: nn.Module, learning_rate: float | None, weight_decay: float, pretrained: bool
) -> AdamW:
    """Layers that know something already move less, those near the images least."""
    usual = _LEARNING_RATE if pretrained else _FROM_RANDOM
    rate = usual if learning_rate is None else learning_rate
    first_layer = _FIRST_LAYER if pretrained else 1.0
    groups = parameter_groups(model, rate, weight_decay=weight_decay, first_layer=first_layer)
    return AdamW(groups)


def _varied(loader: DataLoader, balance: str | None, mix: str | None, seed: int) -> DataLoader:
    """The training loader with what changes its batches."""
    loader = balanced_loader(loader) if balance == "sampler" else loader
    classes = len(loader.dataset.classes)
    return loader if mix is None else MixedLoader(loader, classes, mix, seed=seed)
