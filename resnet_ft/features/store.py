"""Features on disk, and the data set that delivers them instead of images."""

import atexit
import copy
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from resnet_ft.data.batches import ImageLoader
from resnet_ft.data.dataset import ImageDataset, SampleKey
from resnet_ft.errors import TrainingError
from resnet_ft.files import DiskBudget

ONE_TIME = "once"  # how keys begin that are random, since nothing describes what they stand for
_DTYPE = np.dtype(np.float16)


@dataclass(frozen=True)
class FeatureFile:
    """`rows` rows in half precision in a directory, under a key that nothing else has."""

    directory: Path
    key: str
    rows: int

    def find(self) -> np.ndarray | None:
        """The finished array of shape (rows, ...), mapped into memory, if there is one."""
        for path in self._paths(".f16"):
            shape = _row_shape(path)
            if path.stat().st_size == self.rows * _row_bytes(shape):  # else an incomplete copy, say
                with suppress(OSError):  # in a read-only folder
                    path.touch()  # the least recently used file is deleted first
                return np.memmap(path, _DTYPE, mode="r", shape=(self.rows, *shape))
        return None

    def forget(self) -> None:
        """Delete the file, finished or not."""
        for path in self._paths(".f16") + self._paths(".part"):
            path.unlink()

    def rows_done(self) -> int:
        """How many rows an interrupted process left."""
        parts = self._paths(".part")
        return sum(part.stat().st_size // _row_bytes(_row_shape(part)) for part in parts)

    def append(self, features: np.ndarray) -> None:
        """Add rows in half precision, over the part of a row that a killed process left."""
        shape = features.shape[1:]
        part = self.directory / f"features-{self.key}-{'x'.join(map(str, shape))}.part"
        part.touch()
        os.truncate(part, self.rows_done() * _row_bytes(shape))
        with part.open("ab") as file:
            file.write(features.tobytes())

    def finish(self) -> None:
        """Give the file its final name, once it has all rows."""
        for part in self._paths(".part"):
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(part.with_suffix(".f16"))

    def _paths(self, suffix: str) -> list[Path]:
        named = re.compile(rf"features-{self.key}-[1-9]\d*(x[1-9]\d*)*\{suffix}")
        return [path for path in self.directory.glob("features-*") if named.fullmatch(path.name)]


def _row_shape(path: Path) -> tuple[int, ...]:
    return tuple(int(size) for size in path.stem.split("-")[2].split("x"))


def _row_bytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _DTYPE.itemsize


def writable(directory: Path) -> Path:
    """The directory, or a temporary one for this process if it cannot be written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "features.lock").touch()
        return directory
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="resnet_ft-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        warnings.warn(
            f"{directory} cannot be written to ({error}), so features are kept in {temporary} "
            "until this process ends. Give another cache_dir to keep them for longer.",
            stacklevel=3,
        )
        return temporary


def make_room(
    files: list[FeatureFile], shape: tuple[int, ...], size_gb: float | None, kept: Container[str]
) -> None:
    """Delete other features, none with the keys `kept`, until `files` with rows of a shape fit.

    Those with random keys, which nobody finds again, go first, then the least recently used. By
    default, features take half of what the disk has. Raises TrainingError if they do not fit.
    """
    directory = files[0].directory
    needed = sum((file.rows - file.rows_done()) * _row_bytes(shape) for file in files)
    for path in directory.glob(f"features-{ONE_TIME}*"):
        with suppress(OSError):  # Windows does not delete a file that is being read
            path.unlink()
    budget = DiskBudget(directory, "features-*", size_gb, share=0.5)
    in_use = [path for path in budget.sizes if path.stem.split("-")[1] in kept]
    if not budget.make_room(needed, in_use=in_use):
        room = max(0, budget.limit - budget.used)
        raise TrainingError(
            f"The outputs of the frozen layers need {needed / 2**20:,.1f} MiB in {directory}, but "
            f'only {room / 2**20:,.1f} MiB may be used. Freeze more (freeze(model, until="fc") '
            "needs least), take fewer views, a larger cache_size_gb or another cache_dir, or train "
            "without precompute."
        )


@contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """Raise TrainingError, with the remedy, when the disk is full or fails."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"The outputs of the frozen layers cannot be written to {directory} ({error}). Make "
            "room, or give another cache_dir, and run it again: what is written already is kept."
        ) from error


class FeatureDataset(Dataset):
    """(features, label) pairs of an image data set; has its classes, samples, targets and so on.

    `views` are arrays (N, ...), one for each view of the images; epoch e sees view e modulo their
    number. `features[i]` is sample i as epoch 0 sees it.
    """

    def __init__(self, images: ImageDataset, views: Sequence[np.ndarray]) -> None:
        self.views = views
        self.labels = torch.from_numpy(images.labels)
        for name in ("classes", "samples", "targets", "preprocessing", "fingerprint", "unreadable"):
            setattr(self, name, getattr(images, name))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        features, labels = self.__getitems__([SampleKey(0, i)])
        return features[0], int(labels[0])

    def __getitems__(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor]:
        """A batch at once, as DataLoader asks for it."""
        rows = [self.views[key.epoch % len(self.views)][key.index] for key in keys]
        return torch.from_numpy(np.stack(rows)).float(), self.labels[[key.index for key in keys]]

    def first_view(self) -> tuple[Tensor, Tensor]:
        """The features of the first view, (N, ...) floats, and labels (N,)."""
        return torch.from_numpy(np.array(self.views[0])).float(), self.labels


def feature_loader(
    images: ImageLoader, dataset: ImageDataset, views: Sequence[np.ndarray]
) -> DataLoader:
    """A loader that delivers the features of what `images` would deliver, batch for batch."""
    return DataLoader(
        FeatureDataset(dataset, views),
        batch_sampler=copy.copy(images.batch_sampler),
        collate_fn=default_convert,  # the data set collates
        generator=torch.Generator(),  # never used: the default one stays as it is
    )
