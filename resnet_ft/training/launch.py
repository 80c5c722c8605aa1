"""A run in several processes, started from one: a notebook, say, which could not split itself."""

import inspect
import json
import signal
import subprocess
import sys
from collections import deque
from os import PathLike
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from resnet_ft import distributed, engine
from resnet_ft.data.loaders import make_dataloaders
from resnet_ft.data.transforms import train_transform
from resnet_ft.errors import ParameterError, TrainingError
from resnet_ft.models.build import build_model
from resnet_ft.models.freezing import freeze
from resnet_ft.staging.drive import project_root
from resnet_ft.staging.stage import stage_dataset
from resnet_ft.training.fine_tune import fine_tune
from resnet_ft.training.resume import Checkpointer
from resnet_ft.training.run import Run, start_run


def launch_training(
    run: Run,
    num_processes: int,
    *,
    data_dir: str | PathLike | None = None,
    save_minutes: float = 5.0,
    **options: object,
) -> None:
    """Train a run that was started by `num_processes` processes of this machine, one for each GPU.

    What they print appears here. `options` are those of `fine_tune`, which, called afterwards with
    the same, returns at once with the model. An interrupt ends the processes; their last complete
    step is saved, if the half minute that torchrun gives them suffices for that. Raises
    TrainingError, with their last words, where they fail.
    """
    start_run(run, fine_tune=options)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc_per_node={num_processes}", "-m", "resnet_ft", "train"),
        *("--config", str(run.folder / "config.json"), "--save_minutes", str(save_minutes)),
        *(() if data_dir is None else ("--data_dir", str(data_dir))),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    last: deque[str] = deque(maxlen=20)
    try:
        for line in process.stdout:
            last.append(line)
            print(line, end="")
        process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.terminate()
    if process.returncode:
        raise TrainingError(
            f"Training in {num_processes} processes failed ({process.returncode}). Run it again to "
            f"go on, when what they said last is put right:\n{''.join(last)}"
        )


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
    if distributed.is_main():
        start_run(run, **chosen, **({"fine_tune": options} if options else {}))
    with distributed.one_of_each_machine_first():  # it downloads and decodes, the others find that
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
