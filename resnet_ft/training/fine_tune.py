"""fine_tune: the head first, on features that are computed once, then the whole model from there.

Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution",
ICLR 2022: a model whose head is right before its other layers move keeps more of what it knows.
Notebook 03 shows the same steps one by one.
"""

import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn
from torch.utils.data import DataLoader

from resnet_ft import distributed, engine
from resnet_ft.data.batches import reads_files
from resnet_ft.data.mixing import MixedLoader, balanced_loader, class_weights
from resnet_ft.errors import ParameterError
from resnet_ft.evaluation.predictions import evaluate
from resnet_ft.models.check import check_model
from resnet_ft.models.checkpoint import load_checkpoint
from resnet_ft.models.freezing import freeze_batchnorm, kept_trainable
from resnet_ft.training.averaging import WeightAverage
from resnet_ft.training.budget import TimeBudget, plan_epochs
from resnet_ft.training.calibrate import calibrate
from resnet_ft.training.callbacks import Callback, EarlyStop
from resnet_ft.training.head import fit_head
from resnet_ft.training.loop import train_model
from resnet_ft.training.options import FineTuneOptions
from resnet_ft.training.run import Run
from resnet_ft.training.schedule import Schedule, make_optimizer, make_scheduler, parameter_groups
from resnet_ft.training.state import Metric, trainable_parameters


def fine_tune(
    model: nn.Module,
    dataloaders: Mapping[str, DataLoader],
    *,
    epochs: int | None = None,
    minutes: float | None = None,
    learning_rate: float | None = None,
    weight_decay: float = 0.05,
    optimizer: str = "adamw",
    schedule: Schedule = "cosine",
    label_smoothing: float = 0.0,
    mix: str | None = None,
    balance: str | None = None,
    train_batchnorm: bool = False,
    average_weights: bool = True,
    patience: int | None = None,
    clip_grad_norm: float | None = None,
    seed: int = 0,
    metrics: Mapping[str, Metric] | None = None,
    compile_model: bool = False,
    run_dir: str | PathLike[str] | Run | None = None,
    resume: str | bool = "auto",
    cache_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[nn.Module, pd.DataFrame]:
    """Solve the head, then train all layers from there; keep the best of all on validation.

    1. The head, on what the other layers put out, computed once (see `fit_head`; `cache_dir`). This
       is epoch 0 of the history, with cross-validated training columns; `run_dir` also gets
       head_predictions.csv. Models with random weights begin with 2.
    2. What is not frozen trains with AdamW: the first layers at a tenth of `learning_rate`, with
       warm-up, cosine decay and frozen BatchNorm. An average of the weights is scored as well, and
       at the end three points on the way from the head to that average (see `WeightAverage`).
    3. Of head, epochs and averages the highest validation accuracy counts (see `train_model`); of
       that, the head and the points between, the model gets the lowest validation loss.
    4. With `run_dir`, the validation images calibrate its confidence (see `calibrate`).

    `epochs`: by default 5, from random weights 25; 0 stops after the head. `minutes`, in their
    place, limits the time for everything. `optimizer`: "adamw", "adam" or "sgd". `schedule`:
    "cosine", "linear", "constant" or a function (see `make_scheduler`). `mix`: "mixup", "cutmix" or
    "both". `balance`: "loss" or "sampler", for classes of unequal size. `patience`: stop after so
    many epochs without a lower validation loss. How strongly images are augmented is up to
    `make_dataloaders(train=...)`. `metrics`, `clip_grad_norm` and `compile_model` are those of
    `train_model`. `FineTuneOptions` checks the options.

    Called again with the same options and `run_dir`, an interrupted run resumes where it was, and a
    finished one returns at once; `minutes` count over all of it. Returns the model and the history
    as `train_model` does, and raises what it and `precompute` do.
    """
    given = locals()
    options = FineTuneOptions(**{name: given[name] for name in FineTuneOptions.names()})
    started = time.perf_counter()
    _check(model, dataloaders, options)
    pretrained = getattr(model, "pretrained", True)
    loader: Any = dataloaders["train"]
    num_classes = len(loader.dataset.classes)
    weights = class_weights(loader.dataset.labels, num_classes) if options.balance else None
    loss_weights = weights if options.balance == "loss" else None
    criterion = nn.CrossEntropyLoss(loss_weights, label_smoothing=options.label_smoothing)
    criterion.to(engine.device())
    loader = balanced_loader(loader) if options.balance == "sampler" else loader
    if options.mix:
        loader = MixedLoader(loader, num_classes, options.mix, seed=options.seed)
    varied = {**dataloaders, "train": loader}
    budget = TimeBudget(options.minutes, started=started) if options.minutes else None
    run = None
    if run_dir is not None and distributed.is_main():
        run_dir = run = Run.open(run_dir, {"fine_tune": options.described()}, resume=resume)
    resumes = distributed.from_main(run is not None and run.can_resume)

    with kept_trainable(model):
        head = None
        if pretrained and not resumes:
            head = fit_head(
                *(model, dataloaders, criterion),
                class_weights=weights,
                cache_dir=cache_dir,
                seed=options.seed,
                run=run,
            )
        if pretrained and not options.train_batchnorm:
            freeze_batchnorm(model)
        groups = parameter_groups(model, options.learning_rate, weight_decay=options.weight_decay)
        chosen = make_optimizer(options.optimizer, groups)
        num_epochs = plan_epochs(model, varied, epochs=options.epochs, budget=budget, run=run)
        scheduler = make_scheduler(chosen, options.schedule, budget or num_epochs * len(loader))
        watchers: list[Callback] = [] if options.patience is None else [EarlyStop(options.patience)]
        watchers += [budget] if budget else []
        watchers += [WeightAverage()] if options.average_weights else []
        watchers += callbacks
        model, history = train_model(
            *(model, varied, criterion, chosen, scheduler, num_epochs),
            metrics=metrics,
            clip_grad_norm=options.clip_grad_norm,
            compile_model=compile_model,
            run_dir=run_dir,
            first_row=head.row if head else None,
            callbacks=watchers,
        )
    has_best = run is not None and run.storage.has_home(run.best.name)  # and not elsewhere
    if distributed.from_main(run and has_best and not load_checkpoint(run.best).calibration):
        found = evaluate(model, dataloaders["val"])
        if run is not None:
            print(calibrate(run, found))
    return model, history


def _check(
    model: nn.Module, dataloaders: Mapping[str, DataLoader], chosen: FineTuneOptions
) -> None:
    """Refuse what could not work, before any work is done; options check themselves."""
    trainable_parameters(model)
    if not all(reads_files(dataloaders.get(split)) for split in ("train", "val")):
        raise ParameterError(
            'fine_tune takes loaders "train" and "val" that make_dataloaders makes of image files. '
            "With others, of shards too, use train_model."
        )
    if chosen.minutes is None:
        plan_epochs(model, {}, epochs=chosen.epochs)
    optimizer = make_optimizer(chosen.optimizer, parameter_groups(model, chosen.learning_rate))
    make_scheduler(optimizer, chosen.schedule, 1)
    micro_batches = engine.accelerator().gradient_accumulation_steps
    with kept_trainable(model):
        if not chosen.train_batchnorm:
            freeze_batchnorm(model)
        check_model(model, dataloaders["train"], micro_batches=micro_batches)
