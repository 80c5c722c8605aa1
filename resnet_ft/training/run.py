"""A run directory: the parameters of a run, what it measured, and the model that it left."""

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from resnet_ft.errors import CheckpointError, RunError
from resnet_ft.files import atomic_write, is_on_drive, user_path
from resnet_ft.models.build import build_model
from resnet_ft.models.checkpoint import load_checkpoint
from resnet_ft.reading import checked_identifier, in_words, read_json, read_table, reading
from resnet_ft.remote import masked
from resnet_ft.training.storage import ResumeState, Storage

_VERSIONS_OF = ("torch", "torchvision", "numpy", "pandas", "accelerate", "pillow")
_COLUMNS = (
    *("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("learning_rate", "seconds"),
)
_SPARE = "best.spare.pt"  # whole while best.pt, of a finished run, is written over
# A run may get longer, and its files may lie elsewhere: these entries of config.json may change.
_MAY_CHANGE = (
    *("training.num_epochs", "fine_tune.epochs", "fine_tune.patience"),
    *("data_source", "weights"),
)
# These are described in words, which not every difference makes another run.
_DESCRIBED = ("train_transform", "val_transform", "criterion_settings", "sampling")


class Run:
    """The files of one run, in one folder: config.json, history.csv, best.pt, figures/.

    `Run.open` begins or resumes one, `load_run` finds a trained one. A Run can be given wherever a
    path of its folder can.
    """

    def __init__(self, run_dir: str | os.PathLike[str]):
        self.folder = user_path(run_dir)
        self._id: str | None = None

    @classmethod
    def open(
        cls,
        run_dir: "str | os.PathLike[str] | Run",
        parameters: Mapping[str, object] | None = None,
        *,
        decisions: str | os.PathLike[str] | None = None,
        resume: str | bool = "auto",
    ) -> "Run":
        """Begin a run or resume it: record its parameters and the library versions in its folder.

        A file of `decisions` about single images is copied into the folder, if there is one, so
        that the run's data set can be reproduced. A run that has begun keeps its parameters and
        decisions. Opened again, a Run only gets further parameters. Raises RunError where
        `parameters` differ from the recorded ones, where the run cannot be resumed, and, with
        `resume=False`, where it has begun: no run is ever overwritten or mixed with another.
        """
        run = run_dir if isinstance(run_dir, Run) else cls(run_dir)
        run.mend_best()
        if run.has_begun and (resume != "auto" or not run.can_resume):
            raise RunError(
                f"{run.folder} already holds a trained run. Choose another run_dir, or move that "
                "folder away if you no longer need it."
            )
        run.record(**(_identity() if run.id is None else {}), **parameters or {})
        if decisions is not None:
            run._compare_decisions(decisions) if run.has_begun else run._copy_decisions(decisions)
        return run

    def record(self, **parameters: object) -> None:
        """Add parameters to config.json; RunError where a run that has begun has other ones."""
        if (weights := parameters.get("weights")) and user_path(str(weights)).is_file():
            with user_path(str(weights)).open("rb") as content:
                parameters["weights_content"] = hashlib.file_digest(content, "sha256").hexdigest()
        new = _as_stored(parameters)
        file = self.folder / "config.json"
        old = self.config if file.exists() else {}
        # A file that somebody wrote keeps its addresses with passwords.
        new = {k: v for k, v in new.items() if k not in old or _as_stored(old[k]) != v}
        if self.has_begun or self.best.exists():  # a head alone must not be overwritten either
            check_unchanged(self, old, new)
        if old | new != old:
            text = json.dumps({**old, **new}, indent=2, ensure_ascii=False) + "\n"
            try:
                with atomic_write(file) as temporary:
                    temporary.write_text(text, "utf-8", "surrogatepass")  # names beyond UTF-8
            except OSError as error:  # before any work is done that could not be saved
                raise RunError(
                    f"{file} cannot be written ({error.strerror or error}). Make room there, or "
                    "choose a run_dir that you may write to."
                ) from error

    def _copy_decisions(self, decisions: str | os.PathLike[str]) -> None:
        own = self.folder / "decisions.csv"
        own.unlink(missing_ok=True)  # of an earlier attempt
        if user_path(decisions).exists():
            shutil.copyfile(user_path(decisions), own)

    def _compare_decisions(self, decisions: str | os.PathLike[str]) -> None:
        own = self.decisions.read_bytes() if self.decisions else b""
        file = user_path(decisions)
        now = file.read_bytes() if file.exists() else b""
        if own != now:
            warnings.warn(
                f"{self.folder} resumes with the decisions about images that it began with. "
                f"{decisions} has changed since: to use it, choose another run_dir.",
                stacklevel=3,
            )

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.folder / "best.pt"

    @property
    def figures(self) -> Path:
        """The folder for figures; it is created here."""
        folder = self.folder / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def config(self) -> dict[str, object]:
        """The parameters of the run."""
        file = self.folder / "config.json"
        with reading(file, RunError, "Put the file of this run back, or choose another run_dir."):
            config = read_json(file)
            if config.get("id") is not None:
                config["id"] = checked_identifier(config["id"])  # a path is made of it
            return config

    @property
    def decisions(self) -> Path | None:
        """The decisions about single images that the run follows, if there are any."""
        file = self.folder / "decisions.csv"
        return file if file.exists() else None

    @property
    def data_source(self) -> str:
        """The source of the run's data set, as notebook 03 recorded it."""
        source = self.config.get("data_source")
        if source is None:
            raise RunError(
                f"{self.folder} was trained from Python and does not say where its data set is. "
                "Give it as a parameter: data_dir in notebook 04, folder in notebook 05."
            )
        return str(source)

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch, as `train_model` returns it.

        Where history.csv is lost or damaged, it comes from the resume state, with a warning. Raises
        RunError where there is none.
        """
        file = self.folder / "history.csv"
        with reading(file, RunError, "Put the file of this run back, or choose another run_dir."):
            try:
                return _checked(read_table(file, _COLUMNS, is_number=_COLUMNS.__contains__))
            except Exception as error:
                saved: Any = self.resume_state() if self.can_resume else None
                progress = saved and (saved[1].get("progress") or saved[1]["position"])
                if not progress or not progress["rows"]:
                    raise
                history = _checked(history_of(progress["rows"]))
                warnings.warn(
                    f"{file} cannot be read ({in_words(error)}). Its rows are those of the "
                    "resume state.",
                    stacklevel=2,
                )
                return history

    @property
    def id(self) -> str | None:
        """What identifies the run, once it has begun."""
        if self._id is None and (self.folder / "config.json").exists():
            found: Any = self.config.get("id")
            self._id = found
        return self._id

    @cached_property
    def storage(self) -> Storage:
        """Writes the files of the run, elsewhere while its folder is gone."""
        return Storage(self.folder, self.id)

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Let `write` make the file of this name in the run's folder (see `Storage`)."""
        self.storage.write(name, write)

    def rewrite_best(self, write: Callable[[Path], object]) -> None:
        """Let `write` replace best.pt, which a kill in the midst of that does not damage."""
        if is_on_drive(self.best):  # where no file is replaced, it is written over
            self.write(_SPARE, write)
        self.write(self.best.name, write)
        self._free_spare()

    def mend_best(self) -> None:
        """Complete what a killed `rewrite_best` left, if there is something."""
        spare = self.folder / _SPARE
        with suppress(CheckpointError):  # half a spare: best.pt had not been touched yet
            if spare.is_file() and load_checkpoint(spare):
                self.write(self.best.name, partial(shutil.copyfile, spare))
        self._free_spare()

    def _free_spare(self) -> None:
        with suppress(OSError):
            os.truncate(self.folder / _SPARE, 0)  # what is deleted goes to Google Drive's Trash
            (self.folder / _SPARE).unlink()

    def save_history(self, history: pd.DataFrame) -> None:
        """Write history.csv."""
        self.write("history.csv", lambda path: history.to_csv(path, index=False))

    def resume_state(self) -> tuple[int, ResumeState] | None:
        """What the run continues from, and the number of that save; None before the first save.

        Raises RunError where it is damaged or belongs to another run.
        """
        found = self.storage.read_resume_state()
        if found is None:
            return None
        with reading(f"What {self.folder} resumes from", RunError, "Choose another run_dir."):
            run = found[1]["run"]
        if run != self.id:
            raise RunError(
                f"{self.folder} holds the last.0.pt or last.1.pt of another run. Move them back to "
                "where they came from, or choose another run_dir."
            )
        return found

    @property
    def can_resume(self) -> bool:
        """Whether there is a resume state."""
        return self.id is not None and self.storage.has_resume_state()

    @property
    def has_begun(self) -> bool:
        """Whether a part of an epoch or more has been trained."""
        if self.can_resume:
            return True
        if not (self.folder / "history.csv").exists():
            return self.best.exists()
        return bool(self.history["epoch"].max() > 0)  # the head alone is solved again in seconds


def history_of(rows: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """A table of one row per epoch; the columns of metrics and callbacks come last."""
    history = pd.DataFrame(rows)
    first = [name for name in _COLUMNS if name in history]
    return history[first + [name for name in history if name not in first]]


def _checked(history: pd.DataFrame) -> pd.DataFrame:
    """The table of history.csv. Raises ValueError for rows that no training writes."""
    for name in [name for name in history if name not in _COLUMNS]:
        with suppress(ValueError):  # a column of somebody's own may hold texts
            history[name] = pd.to_numeric(history[name])
    measured = [name for name in _COLUMNS if name != "learning_rate"]  # a solved head has none
    trained = history.loc[history["epoch"] != 0, measured].to_numpy()
    if not len(history) or not np.isfinite(trained).all():
        raise ValueError("it has no rows, or cells that are empty or infinite")
    epochs = history["epoch"].to_numpy()
    if (epochs != epochs[0] + np.arange(len(epochs))).any() or epochs[0] not in (0, 1):
        raise ValueError("its epochs are not numbered from 0 or 1")
    return history.astype({"epoch": int})


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    return versions | {name: version(name) for name in _VERSIONS_OF}


def _as_stored(parameters: Any) -> Any:
    """What config.json gives back for these values: plain data, addresses without passwords."""
    return _masked(json.loads(json.dumps(parameters, default=str)))


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _masked(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_masked(one) for one in value]
    return masked(value) if isinstance(value, str) and ":/" in value else value


def _identity() -> dict[str, object]:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"id": secrets.token_hex(8), "created": created, "versions": _versions()}


def check_unchanged(
    run: Run, old: Mapping[str, object], new: Mapping[str, object], *, warn: bool = True
) -> None:
    """Raise RunError where parameters differ from those that the run began with.

    What reads differently, but may be the same, is warned of: functions and objects without a name,
    and the settings of classes of another version of a library.
    """
    other_versions = old.get("versions", {}) != _versions()
    refused, unsure = list[str](), list[str]()
    for name, before, now in _changes(old, new):
        is_text = name.split(".")[-1] in _DESCRIBED and isinstance(before, str)
        same = is_text and (other_versions or _certain(str(before)) == _certain(str(now)))
        (unsure if same else refused).append(f"{name} was {before!r}, now {now!r}")
    if refused:
        raise RunError(
            f"{run.folder} holds a run that began with other parameters: {', '.join(refused)}. "
            "To resume it, give the old ones; for the new ones choose another run_dir."
        )
    if unsure and warn:
        warnings.warn(
            f"{run.folder} resumes with what may not be as it was: {', '.join(unsure)}. "
            "If it is not, the results are those of neither run.",
            stacklevel=4,
        )


def _changes(
    old: Mapping[str, object], new: Mapping[str, object], prefix: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Name, value then and value now of what both have, what differs and what has to be equal."""
    for name in old.keys() & new.keys():
        before, now = old[name], new[name]
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _changes(before, now, f"{prefix}{name}.")
        elif before != now and prefix + name not in _MAY_CHANGE:
            yield prefix + name, before, now


def _certain(description: str) -> str:
    """A description of `describe_training` without the insides of what it marks with "?"."""
    while found := re.search(r"\?[\w.<>]+\(", description):
        end, depth = found.end(), 1
        while depth and end < len(description):
            depth += {"(": 1, ")": -1}.get(description[end], 0)
            end += 1
        name = found[0].strip("?(")
        description = f"{description[: found.start()]}{name}{description[end:]}"
    return description


def space_of_run(
    arch: str = "resnet101", *, keep_resume_state: bool = True, num_classes: int = 10
) -> dict[str, float]:
    """The GiB that a run's folder takes "while training" (with AdamW) and "afterwards".

    best.pt holds the weights. Each of the two resume states holds them as well, the best ones,
    their average, those of the start (of a model with a solved head) and two numbers per weight of
    the optimizer; of a finished run only one is left, without the best ones, or none (see
    `Autosave`). Raises ParameterError for an unknown `arch`.
    """
    with torch.device("meta"):  # no memory is taken
        tensors = build_model(arch, num_classes, weights=None).state_dict().values()
    weights = sum(one.numel() * one.element_size() for one in tensors) / 2**30
    return {
        "while training": 13 * weights,
        "afterwards": (6 if keep_resume_state else 1) * weights,
    }


def load_run(run_dir: str | os.PathLike[str]) -> Run:
    """The run that training left in a folder. Raises RunError where there is none."""
    run = Run(run_dir)
    run.mend_best()
    missing = [name for name in ("config.json", "best.pt") if not (run.folder / name).is_file()]
    if missing:
        others = ", ".join(sorted(path.parent.name for path in run.folder.parent.glob("*/best.pt")))
        raise RunError(
            f"{run.folder} is not a trained run: {' and '.join(missing)} missing. Train one with "
            "notebook 03 or resnet_ft train, or choose another run (found beside it: "
            f"{others or 'none'})."
        )
    return run
