"""A run without a notebook: trained as its config.json says, in one process or in several."""

import os
import re
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
from resnet_ft.audit.audit import audit_dataset
from resnet_ft.data.decisions import decisions_file
from resnet_ft.data.loaders import describe_loaders, make_dataloaders
from resnet_ft.data.transforms import eval_transform, train_transform
from resnet_ft.errors import ParameterError, RunError, TrainingError
from resnet_ft.files import user_path
from resnet_ft.models.build import build_model
from resnet_ft.models.freezing import freeze
from resnet_ft.models.preprocessing import preprocessing_of
from resnet_ft.reading import read_json, reading
from resnet_ft.remote import masked
from resnet_ft.staging.archives import archive_stem
from resnet_ft.staging.drive import project_root
from resnet_ft.staging.stage import stage_dataset
from resnet_ft.training.fine_tune import fine_tune
from resnet_ft.training.options import FineTuneOptions, RunOptions, checked
from resnet_ft.training.resume import Autosave
from resnet_ft.training.run import Run

_RECORDED = ("id", "created", "versions", "weights_content", "training", "fine_tune")  # by the run


def train_run(
    source: str | PathLike[str],
    *,
    run_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
    num_workers: int | None = None,
    save_minutes: float = 5.0,
    keep_resume_state: bool = True,
    **options: Any,
) -> tuple[nn.Module, pd.DataFrame]:
    """Train or resume a run without a notebook; returns model and history.

    `source` is photographs, as `stage_dataset` takes them, or the config.json of a run, or its
    folder. You may write that file yourself: `data_source`, `arch`, `weights`, `freeze_until`,
    `image_size`, `batch_size`, `augmentation`, `mixed_precision` and `seed`, by default those of
    notebook 03, and below "fine_tune" the options of that function. All of these are `options`
    here too, and count before the file. The run is kept in the file's folder; that of photographs
    in `run_dir`, by default "runs/<photographs>-<arch>", with the decisions about images beside it.
    `data_dir` is where the images are, if not at `data_source`; the other options are those of
    `Autosave`. Of several processes all call this. Raises ParameterError, naming the entry, for a
    file that says anything else, and RunError where the folder holds another run.
    """
    options = checked(options)
    config = _config_of(source)
    if config and run_dir is not None:
        raise ParameterError(f"{config} is of a run, which stays in its folder: leave run_dir out.")
    new: dict[str, Any] = {"data_source": os.fspath(source)}
    content = _described(config) if config else new
    defaults = asdict(RunOptions())
    content |= {name: options.pop(name) for name in defaults if name in options}
    options = {**content.get("fine_tune", {}), **options}
    known = {"": [*defaults, *_RECORDED], '"fine_tune" ': FineTuneOptions.names()}
    for (place, names), given in zip(known.items(), (content, options), strict=True):
        if unknown := sorted({*given} - {*names}):
            raise ParameterError(
                f"{source} has unknown {place}entries: {', '.join(unknown)}. It may have "
                f"{', '.join(names)}."
            )
    arguments = {
        **{"data_dir": data_dir, "num_workers": num_workers, "save_minutes": save_minutes},
        "keep_resume_state": keep_resume_state,
    }
    entries = {name: content.get(name, default) for name, default in defaults.items()}
    below = {f"fine_tune.{name}": value for name, value in options.items()}
    remedy = f"Correct {config}." if config else ""
    values = checked({**arguments, **entries, **below}, remedy=remedy)
    data_dir, num_workers, save_minutes, keep_resume_state = (values[name] for name in arguments)
    chosen = RunOptions(**{name: values[name] for name in entries})
    options = {name: values[f"fine_tune.{name}"] for name in options}

    engine.configure_engine(mixed_precision=chosen.mixed_precision)
    run = Run(run_folder(source, run_dir, chosen.arch))
    with distributed.one_per_machine_first():  # it downloads, the others find that
        images = stage_dataset(data_dir or chosen.data_source, project_root() / "data")
        if distributed.is_main():
            if not config:
                _check_source(run, chosen.data_source, run_dir)
            content = {**asdict(chosen), **({"fine_tune": options} if options else {})}
            decisions = None if config else decisions_file(run.folder.parent, chosen.data_source)
            Run.open(run, content, decisions=decisions)
            if not config and not run.has_begun:
                print(audit_dataset(images, image_size=chosen.image_size))
    with distributed.one_per_machine_first():  # it decodes
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
    if distributed.is_main():
        begins = "pretrained" if model.pretrained else "from random weights"
        print(describe_loaders(dataloaders))
        print(f"{run.folder}: {chosen.arch}, {begins}, {engine.describe_device()}")
    if chosen.freeze_until:
        freeze(model, until=chosen.freeze_until)
    options = {"seed": chosen.seed, **options}
    saving = [Autosave(minutes=save_minutes, keep_resume_state=keep_resume_state)]
    return fine_tune(model, dataloaders, **options, run_dir=run, callbacks=saving)


def _described(config: Path) -> dict[str, Any]:
    """What a config.json says. Raises ParameterError for one that cannot be read."""
    remedy = (
        "It should be the config.json of a run, or a JSON file of your own such as "
        '{"data_source": "photos", "arch": "resnet50"}.'
    )
    with reading(config, ParameterError, remedy):
        content: dict[str, Any] = read_json(config)
        if not isinstance(options := content.get("fine_tune", {}), dict):
            raise ValueError(f'"fine_tune" is {options!r}, not an object {{...}}')
    return content


def run_folder(
    source: str | PathLike[str], run_dir: str | Path | None = None, arch: str = RunOptions.arch
) -> Path:
    """Where `train_run` keeps the run of a config.json or of photographs."""
    if config := _config_of(source):
        return config.parent
    name = Path(masked(os.fspath(source)).split("?")[0]).absolute().name
    name = re.sub(r"[^\w.-]+", "-", f"{archive_stem(name) or name}-{arch}")
    return user_path(run_dir or Path("runs", name))


def _check_source(run: Run, source: str, run_dir: str | Path | None) -> None:
    """Raise RunError where photographs of the same name already have a run of that name."""
    if run_dir is None and (run.folder / "config.json").exists():
        now, before = masked(source), str(run.config.get("data_source"))
        if os.path.abspath(before) != os.path.abspath(now):
            raise RunError(f"{run.folder} holds a run on {before}. Choose another run_dir.")


def _config_of(source: str | PathLike[str]) -> Path | None:
    """The config.json that a source is, or that the folder of a run has."""
    path = user_path(source)
    if (path / "config.json").is_file():
        return path / "config.json"
    return path if path.suffix == ".json" else None


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
