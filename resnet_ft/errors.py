"""The errors that a user can cause. Each message names what is wrong, why, and the remedy.

In a live notebook they are shown as that message alone; `%tb` shows where they came from.
"""

import traceback
from importlib import import_module
from typing import Any

from resnet_ft import frontend


class ResnetFtError(Exception):
    """Base of every error that this library raises for something a user can correct."""

    def _render_traceback_(self) -> list[str]:  # IPython calls it
        return _rendered(self)


class DriveError(ResnetFtError):
    """Google Drive could not be mounted, or a folder cannot be read or written."""


class DatasetError(ResnetFtError):
    """A data set cannot be staged, indexed or trained on."""


class ImageError(ResnetFtError):
    """One image cannot be read; `reason` says why in a few words."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason or message


class WeightsError(ResnetFtError):
    """Pretrained weights cannot be downloaded or read, or do not fit the model."""


class CheckpointError(ResnetFtError):
    """A checkpoint cannot be read, or describes a model that cannot be rebuilt."""


class RunError(ResnetFtError):
    """A run directory is missing, incomplete, or already holds another run."""


class TrainingError(ResnetFtError):
    """Training cannot start, or had to stop."""


class ParameterError(ResnetFtError):
    """An argument or a notebook parameter is unknown or out of range."""


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C, or "Interrupt" in a notebook, has ended a run that can be resumed."""

    def _render_traceback_(self) -> list[str]:
        return _rendered(self)


_EXTRAS = {"onnx": "onnx onnxscript onnxruntime", "hub": "huggingface_hub"}


def needed(module: str, extra: str) -> Any:
    """A module that an extra installs. Raises ParameterError without it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ParameterError(
            f'This needs {module}, of the extra "{extra}": pip install {_EXTRAS[extra]}'
        ) from error


def _rendered(error: Any) -> list[str]:
    """What IPython shows of an error: the message at first, then, as for `%tb`, the traceback.

    Where a program runs the notebook, the traceback is shown at once.
    """
    if frontend.is_live() and not getattr(error, "was_shown", False):
        error.was_shown = True
        title = f"\x1b[31m{type(error).__name__}\x1b[0m"
        hint = ["\nFor the traceback, run %tb in a new cell."]
        return [f"{title}: {error}", *(hint if isinstance(error, ResnetFtError) else [])]
    parts = type(error), error, error.__traceback__
    if (shell := frontend.shell()) is None:
        return traceback.format_exception(*parts)
    shown: list[str] = shell.InteractiveTB.structured_traceback(*parts)
    return shown
