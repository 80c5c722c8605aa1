"""The errors that a user can cause. Each message names what is wrong, why, and the remedy."""


class ResnetFtError(Exception):
    """Base of every error that this library raises for something a user can correct."""


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
