"""start_run: a run begins, or goes on with the parameters that it was begun with."""

import json
import os
import platform
import secrets
import shutil
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from resnet_ft.errors import RunError
from resnet_ft.training.runs import Run

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
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
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
