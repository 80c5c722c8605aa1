"""A run directory: the parameters of a run, what it measured, and the model that it left."""

import json
import os
import platform
import shutil
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from resnet_ft.errors import RunError
from resnet_ft.files import atomic_write

_VERSIONS_OF = ("torch", "torchvision", "numpy", "pandas", "accelerate", "pillow")


class Run:
    """The files of one run, in one folder: config.json, history.csv, best.pt, figures/.

    It stands for its folder wherever a path is taken.
    """

    def __init__(self, run_dir: str | os.PathLike):
        self.folder = Path(run_dir)

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
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

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

    def record(self, **entries: object) -> None:
        """Add entries to config.json."""
        config = self.config if (self.folder / "config.json").exists() else {}
        with atomic_write(self.folder / "config.json") as temporary:
            text = json.dumps({**config, **entries}, indent=2, default=str, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    def save_history(self, history: pd.DataFrame) -> None:
        """Write history.csv."""
        with atomic_write(self.folder / "history.csv") as temporary:
            history.to_csv(temporary, index=False)


def start_run(
    run_dir: str | os.PathLike, *, decisions: str | os.PathLike | None = None, **parameters: object
) -> Run:
    """Begin a run: make its folder and note its parameters and the library versions.

    A file of `decisions` about single images is copied into the folder, if there is one: whoever
    looks at the run later needs the data that it saw.
    Raises RunError where a run has been trained there already, so that none is ever overwritten.
    """
    run = Run(run_dir)
    for name in ("history.csv", "best.pt"):
        if (run.folder / name).exists():
            raise RunError(
                f"{run.folder} already holds a trained run ({name}). Choose another run_name, or "
                "move that folder away if it is no longer wanted."
            )
    versions = {name: version(name) for name in _VERSIONS_OF}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    if decisions is not None:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "decisions.csv").unlink(missing_ok=True)  # of an attempt that broke off
        if Path(decisions).exists():
            shutil.copyfile(decisions, run.folder / "decisions.csv")
    versions = {"python": platform.python_version(), **versions}
    run.record(**{"created": now, "versions": versions, **parameters})
    return run


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
