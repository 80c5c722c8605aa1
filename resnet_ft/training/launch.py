"""A run without a notebook: trained as its config.json says, in one process or in several."""

import subprocess
import sys
from collections import deque
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from resnet_ft import distributed, engine
from resnet_ft.data.loaders import make_dataloaders
from resnet_ft.data.transforms import eval_transform, train_transform
from resnet_ft.errors import ParameterError, TrainingError
from resnet_ft.files import user_path
from resnet_ft.models.build import build_model
from resnet_ft.models.freezing import freeze
from resnet_ft.models.preprocessing import preprocessing_of
from resnet_ft.reading import read_json, reading
from resnet_ft.staging.drive import project_root
from resnet_ft.staging.stage import stage_dataset
from resnet_ft.training.fine_tune import fine_tune
from resnet_ft.training.options import FineTuneOptions, RunOptions, checked
from resnet_ft.training.resume import Autosave
from resnet_ft.training.run import Run

_RECORDED = ("id", "created", "versions", "weights_content", "training", "fine_tune")  # by the run


def train_run(
    config: str | PathLike[str],
    *,
    data_dir: str | Path | None = None,
    num_workers: int | None = None,
    save_minutes: float = 5.0,
    keep_resume_state: bool = True,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train or resume the run that a config.json describes; returns model and history.

    You may write the file yourself: `data_source`, `arch`, `weights`, `freeze_until`, `image_size`,
    `batch_size`, `augmentation`, `mixed_precision` and `seed`, by default those of notebook 03, and
    below "fine_tune" the options of that function. The run is kept in the file's folder. `data_dir`
    is where the images are, if not at `data_source`; the other options are those of `Autosave`. Of
    several processes all call this. Raises
    ParameterError, naming the entry, for a file that says anything else.
    """
    config = user_path(config)
    remedy = (
        "It should be the config.json of a run, or a JSON file of your own such as "
        '{"data_source": "photos", "arch": "resnet50"}.'
    )
    with reading(config, ParameterError, remedy):
        content: Any = read_json(config)
        options = content.get("fine_tune", {})
        if not isinstance(options, dict):
            raise ValueError(f'"fine_tune" is {options!r}, not an object {{...}}')
    defaults = asdict(RunOptions())
    known = {"": [*defaults, *_RECORDED], '"fine_tune" ': FineTuneOptions.names()}
    for (place, names), given in zip(known.items(), (content, options), strict=True):
        if unknown := sorted({*given} - {*names}):
            raise ParameterError(
                f"{config} has unknown {place}entries: {', '.join(unknown)}. It may have "
                f"{', '.join(names)}."
            )
    arguments = {
        **{"data_dir": data_dir, "num_workers": num_workers, "save_minutes": save_minutes},
        "keep_resume_state": keep_resume_state,
    }
    entries = {name: content.get(name, default) for name, default in defaults.items()}
    below = {f"fine_tune.{name}": value for name, value in options.items()}
    values = checked({**arguments, **entries, **below}, remedy=f"Correct {config}.")
    data_dir, num_workers, save_minutes, keep_resume_state = (values[name] for name in arguments)
    chosen = RunOptions(**{name: values[name] for name in entries})
    options = {name: values[f"fine_tune.{name}"] for name in options}

    engine.configure_engine(mixed_precision=chosen.mixed_precision)
    run = Run(config.parent)
    if distributed.is_main():
        Run.open(run, {**asdict(chosen), **({"fine_tune": options} if options else {})})
    with distributed.one_per_machine_first():  # it downloads and decodes, the others find that
        images = stage_dataset(data_dir or chosen.data_source, project_root() / "data")
        preprocessing = preprocessing_of(chosen.arch, chosen.weights, image_size=chosen.image_size)
        dataloaders = make_dataloaders(
            images,
            batch_size=chosen.batch_size,
            train=train_transform(preprocessing, strength=chosen.augmentation),
            val=eval_transform(preprocessing),
            num_workers=num_workers,
            decisions=run.decisions,
            seed=chosen.seed,
        )
        torch.manual_seed(chosen.seed)
        train: Any = dataloaders["train"].dataset
        model = build_model(chosen.arch, len(train.classes), weights=chosen.weights)
    if chosen.freeze_until:
        freeze(model, until=chosen.freeze_until)
    options = {"seed": chosen.seed, **options}
    saving = [Autosave(minutes=save_minutes, keep_resume_state=keep_resume_state)]
    return fine_tune(model, dataloaders, **options, run_dir=run, callbacks=saving)


def launch_training(
    run: Run,
    num_processes: int,
    *,
    data_dir: str | Path | None = None,
    save_minutes: float = 5.0,
    keep_resume_state: bool = True,
    **options: object,
) -> None:
    """Train an open run in `num_processes` processes of this machine, one for each GPU.

    Their output appears here. `options` are those of `fine_tune`, which then returns the model at
    once when it is called with the same. An interrupt ends the processes; they save their last
    complete step, if that takes less than torchrun's half minute. Raises TrainingError, with their
    last output, where they fail.
    """
    saving = {"save_minutes": save_minutes, "keep_resume_state": keep_resume_state}
    given = {"num_processes": num_processes, **saving, **options}
    num_processes, save_minutes, keep_resume_state, *_ = checked(given).values()
    Run.open(run, {"fine_tune": checked(options)})
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc_per_node={num_processes}", "-m", "resnet_ft", "train"),
        *("--config", str(run.folder / "config.json"), "--save_minutes", str(save_minutes)),
        *(() if keep_resume_state else ("--drop_resume_state",)),
        *(() if data_dir is None else ("--data_dir", str(data_dir))),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    last: deque[str] = deque(maxlen=20)
    try:
        for line in process.stdout or ():
            last.append(line)
            print(line, end="")
    except BaseException:  # an interrupt, for example
        process.terminate()
        raise
    finally:
        process.wait()
    if process.returncode:
        raise TrainingError(
            f"Training in {num_processes} processes failed ({process.returncode}). Solve the "
            f"problem that their last output shows, and run it again to resume:\n{''.join(last)}"
        )
