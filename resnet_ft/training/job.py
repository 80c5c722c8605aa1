"""Training as config.json describes it: what notebook 03 does, for processes without a notebook."""

import inspect
import json
from os import PathLike
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from resnet_ft import engine, processes
from resnet_ft.data.drive import project_root
from resnet_ft.data.loaders import make_dataloaders
from resnet_ft.data.transforms import train_transform
from resnet_ft.errors import ParameterError
from resnet_ft.models.build import build_model
from resnet_ft.models.freezing import freeze
from resnet_ft.staging.stage import stage_dataset
from resnet_ft.training.checkpointing import Checkpointer
from resnet_ft.training.recipe import fine_tune
from resnet_ft.training.runs import Run
from resnet_ft.training.starting import start_run

_DEFAULTS = {
    "data_source": "sample",
    "arch": "resnet101",
    "weights": "auto",
    "freeze_until": None,
    "image_size": 224,
    "batch_size": 32,
    "augmentation": "medium",
    "mixed_precision": "auto",
    "seed": 0,
}
_NOTED = ("id", "created", "versions", "training", "fine_tune")  # by the run itself
_OPTIONS = inspect.signature(fine_tune).parameters


def train_run(
    config: str | PathLike,
    *,
    data_dir: str | PathLike | None = None,
    num_workers: int | None = None,
    save_minutes: float = 5.0,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train, or go on with, the run whose config.json this is; returns model and history.

    The file may be one that you wrote: `data_source`, `arch`, `weights`, `freeze_until`,
    `image_size`, `batch_size`, `augmentation`, `mixed_precision` and `seed`, with the defaults of
    notebook 03 for what it lacks, and below "fine_tune" options of that function. The run is kept
    in the file's folder. `data_dir` is where the photographs are, if not where `data_source` says.
    Of several processes all call this. Raises ParameterError for a file that says something else.
    """
    run = Run(Path(config).parent)
    chosen, options = _read(Path(config))
    engine.configure_engine(mixed_precision=chosen["mixed_precision"])
    if processes.is_main():
        start_run(run, **chosen, **({"fine_tune": options} if options else {}))
    with processes.one_of_each_machine_first():  # it downloads and decodes, the others find that
        images = stage_dataset(data_dir or chosen["data_source"], project_root() / "data")
        dataloaders = make_dataloaders(
            images,
            image_size=chosen["image_size"],
            batch_size=chosen["batch_size"],
            train=train_transform(chosen["image_size"], strength=chosen["augmentation"]),
            num_workers=num_workers,
            decisions=run.decisions,
            seed=chosen["seed"],
        )
        torch.manual_seed(chosen["seed"])
        classes = dataloaders["train"].dataset.classes
        model = build_model(chosen["arch"], len(classes), weights=chosen["weights"])
    if chosen["freeze_until"]:
        freeze(model, until=chosen["freeze_until"])
    callbacks = [Checkpointer(minutes=save_minutes)]
    options = {"seed": chosen["seed"], **options}
    return fine_tune(model, dataloaders, **options, run_dir=run, callbacks=callbacks)


def _read(config: Path) -> tuple[dict[str, object], dict[str, object]]:
    """The parameters, and the options of fine_tune."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterError(
            f"{config} cannot be read ({error}). It should be the config.json of a run, or a JSON "
            'file of your own such as {"data_source": "photos", "arch": "resnet50"}.'
        ) from error
    options = content.get("fine_tune", {})
    for given, known in ((content, (*_DEFAULTS, *_NOTED)), (options, _OPTIONS)):
        if unknown := sorted(set(given) - set(known)):
            raise ParameterError(
                f"{config} has entries that are no parameters: {', '.join(unknown)}. It may have "
                f"{', '.join(known)}."
            )
    return {name: content.get(name, default) for name, default in _DEFAULTS.items()}, options
