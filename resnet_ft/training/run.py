"""A run directory: the parameters of a run, what it measured, and the model that it left."""

import json
import os
import platform
import secrets
import shutil
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from resnet_ft.errors import RunError
from resnet_ft.files import atomic_write
from resnet_ft.training.storage import Storage, next_name, read_newest, snapshots_in


class Run:
    """The files of one run, in one folder: config.json, history.csv, best.pt, figures/.

    It stands for its folder wherever a path is taken.
    """

    def __init__(self, run_dir: str | os.PathLike):
        self.folder = Path(run_dir)
        self._id: str | None = None

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
        """The folder for pictures, made when first asked for."""
        folder = self.folder / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def config(self) -> dict[str, object]:
        """What the run was started with."""
        file = self.folder / "config.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"{file} cannot be read ({error}). Put the file of this run back, or choose "
                "another run_name."
            ) from error

    @property
    def decisions(self) -> Path | None:
        """The decisions about single images that the run follows, where there are any."""
        file = self.folder / "decisions.csv"
        return file if file.exists() else None

    @property
    def data_source(self) -> str:
        """Where the run's data set is kept, as notebook 03 noted it."""
        source = self.config.get("data_source")
        if source is None:
            raise RunError(
                f"{self.folder} was trained from Python and does not say where its data set is. "
                "Give it as a parameter: data_dir in notebook 04, folder in notebook 05."
            )
        return source

    @property
    def history(self) -> pd.DataFrame:
        """A row an epoch, as `train_model` returns it."""
        return pd.read_csv(self.folder / "history.csv")

    @property
    def id(self) -> str | None:
        """What tells the run from all others, once it was started."""
        if self._id is None and (self.folder / "config.json").exists():
            self._id = self.config.get("id")
        return self._id

    @cached_property
    def storage(self) -> Storage:
        """What writes the files of the run, also where its folder goes away."""
        return Storage(self.folder, self.id)

    def snapshot(self) -> tuple[int, dict[str, object]] | None:
        """Where the run stands, and how often that was saved; None before the first time.

        Raises RunError where what was saved is damaged, or is another run's.
        """
        newest = read_newest(self._places())
        if newest is None:
            return None
        path, number, content = newest
        if content["run"] != self.id:
            raise RunError(
                f"{self.folder} holds the last.0.pt or last.1.pt of another run. Move them back to "
                "where they came from, or choose another run_name."
            )
        if path.parent == self.folder:
            self.storage.last_whole = path.name
        else:  # the one of this name in the folder is the one that could not be written
            self.storage.last_whole = next_name(path.name)
            self.storage.remember(path.name)
        return number, content

    @property
    def has_begun(self) -> bool:
        """Whether a part of an epoch or more has been trained."""
        if self.can_continue:
            return True
        if not (self.folder / "history.csv").exists():
            return self.best.exists()
        return self.history["epoch"].max() > 0  # the head alone is found again in seconds

    @property
    def can_continue(self) -> bool:
        """Whether there is a file that says where the run stands."""
        return any(snapshots_in(folder) for folder in self._places())

    def record(self, **entries: object) -> None:
        """Add entries to config.json."""
        file = self.folder / "config.json"
        before = file.read_text(encoding="utf-8") if file.exists() else "{}"
        entries = {**json.loads(before), **entries}
        text = json.dumps(entries, indent=2, default=str, ensure_ascii=False) + "\n"
        if text != before:
            with atomic_write(file) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def save_history(self, history: pd.DataFrame) -> None:
        """Write history.csv."""
        self.storage.write("history.csv", lambda path: history.to_csv(path, index=False))

    def _places(self) -> list[Path]:
        return [self.folder] if self.id is None else [self.folder, self.storage.refuge]


def load_run(run_dir: str | os.PathLike) -> Run:
    """The run that training left in a folder. Raises RunError where there is none."""
    run = Run(run_dir)
    missing = [name for name in ("config.json", "best.pt") if not (run.folder / name).is_file()]
    if missing:
        others = ", ".join(sorted(path.parent.name for path in run.folder.parent.glob("*/best.pt")))
        raise RunError(
            f"{run.folder} is no trained run: {' and '.join(missing)} missing. Train one "
            f"with notebook 03, or give the run_name of another one (found beside it: "
            f"{others or 'none'})."
        )
    return run


_VERSIONS_OF = ("torch", "torchvision", "numpy", "pandas", "accelerate", "pillow")
# How long a run lasts may change from one time to the next, by the names in config.json.
_LENGTHS = ("training.num_epochs", "fine_tune.epochs")


def start_run(
    run_dir: str | os.PathLike,
    *,
    decisions: str | os.PathLike | None = None,
    resume: str | bool = "auto",
    **parameters: object,
) -> Run:
    """Begin a run, or go on with it: note its parameters and the library versions in its folder.

    A file of `decisions` about single images is copied into the folder, if there is one: whoever
    looks at the run later needs the data that it saw. A run that was begun there before goes on
    with what it was begun with. Raises RunError where `parameters` are others than then, where it
    cannot be continued, and with `resume=False`, so that none is ever overwritten or mixed.
    """
    run = Run(run_dir)
    parameters = json.loads(json.dumps(parameters, default=str))  # as they will be read again
    if run.has_begun:
        _go_on(run, resume, parameters)
        _keep_decisions(run, decisions)
        return run
    if run.best.exists():  # a head, which would be overwritten
        check_unchanged(run, run.config, parameters)
    versions = {name: version(name) for name in _VERSIONS_OF}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if decisions is not None:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "decisions.csv").unlink(missing_ok=True)  # of an attempt that broke off
        if Path(decisions).exists():
            shutil.copyfile(decisions, run.folder / "decisions.csv")
    versions = {"python": platform.python_version(), **versions}
    run.record(
        **{"id": run.id or secrets.token_hex(8), "created": now, "versions": versions, **parameters}
    )
    return run


def _go_on(run: Run, resume: str | bool, parameters: dict[str, object]) -> None:
    """Check that a run which was begun can be continued with these parameters."""
    if resume != "auto" or not run.can_continue:
        raise RunError(
            f"{run.folder} already holds a trained run. Choose another run_name, or move that "
            "folder away if it is no longer wanted."
        )
    check_unchanged(run, run.config, parameters)
    run.record(**parameters)


def check_unchanged(run: Run, old: dict[str, object], new: dict[str, object]) -> None:
    """Raise RunError where parameters are others than the run was begun with."""
    changes = {name: change for name, change in _changes(old, new) if name not in _LENGTHS}
    if changes:
        words = (f"{name} was {was!r}, now {now!r}" for name, (was, now) in changes.items())
        raise RunError(
            f"{run.folder} holds a run that was begun with other parameters: {', '.join(words)}. "
            "To continue it, give the old ones; for the new ones choose another run_name."
        )


def _changes(
    old: dict[str, object], new: dict[str, object], prefix: str = ""
) -> Iterator[tuple[str, tuple[object, object]]]:
    """Values that both have and that differ, by their names in config.json."""
    for name in old.keys() & new.keys():
        if isinstance(old[name], dict) and isinstance(new[name], dict):
            yield from _changes(old[name], new[name], f"{prefix}{name}.")
        elif old[name] != new[name]:
            yield prefix + name, (old[name], new[name])


def _keep_decisions(run: Run, decisions: str | os.PathLike | None) -> None:
    """Say so where the user's decisions have changed since: a run keeps those it was begun with."""
    own = run.decisions.read_bytes() if run.decisions else b""
    present = Path(decisions).read_bytes() if decisions and Path(decisions).exists() else b""
    if decisions is not None and own != present:
        warnings.warn(
            f"{run.folder} goes on with the decisions about images that it was begun with, which "
            f"are others than those in {decisions} now. For these choose another run_name.",
            stacklevel=3,
        )
