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
# What features are stored in, by the end of a file's name: the first in which they fit.
_TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
TYPES = list(_TYPES.values())


@dataclass(frozen=True)
class FeatureFile:
    """`rows` rows of one type in a directory, under a key that nothing else has.

    Its name holds the shape of a row and the type; it ends in ".part" until all rows are there.
    """

    directory: Path
    key: str
    rows: int

    def find(self) -> Tensor | None:
        """The finished rows, (rows, ...), mapped into memory, if there are any."""
        for path in self._paths():
            shape, dtype = _row_of(path)
            if path.stat().st_size == self.rows * _row_bytes(shape, dtype):  # else cut off, say
                with suppress(OSError):  # in a read-only folder
                    path.touch()  # the least recently used file is deleted first
                return _mapped(path, dtype).view(self.rows, *shape)
        return None

    def forget(self) -> None:
        """Delete the file, finished or not."""
        for path in self._paths() + self._paths(".part"):
            path.unlink()

    def restart(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Delete all rows; new ones will be of another type."""
        self.forget()
        self._part(shape, dtype).touch()

    @property
    def dtype(self) -> torch.dtype:
        """What an interrupted process stored rows in; else that to begin with."""
        return next((_row_of(part)[1] for part in self._paths(".part")), TYPES[0])

    def rows_done(self) -> int:
        """How many rows an interrupted process left."""
        parts = self._paths(".part")
        return sum(part.stat().st_size // _row_bytes(*_row_of(part)) for part in parts)

    def append(self, features: Tensor) -> None:
        """Add rows, in their type, over the part of a row that a killed process left."""
        shape, dtype = tuple(features.shape[1:]), features.dtype
        part = self._part(shape, dtype)
        part.touch()
        os.truncate(part, self.rows_done() * _row_bytes(shape, dtype))
        with part.open("ab") as file:
            file.write(features.contiguous().view(torch.uint8).numpy().tobytes())

    def finish(self) -> None:
        """Give the file its final name, once it has all rows."""
        for part in self._paths(".part"):
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(part.with_suffix(""))

    def _part(self, shape: tuple[int, ...], dtype: torch.dtype) -> Path:
        suffix = next(suffix for suffix, of in _TYPES.items() if of == dtype)
        return self.directory / f"features-{self.key}-{'x'.join(map(str, shape))}.{suffix}.part"

    def _paths(self, end: str = "") -> list[Path]:
        shape, suffix = r"[1-9]\d*(x[1-9]\d*)*", "|".join(_TYPES)
        named = re.compile(rf"features-{self.key}-{shape}\.({suffix}){re.escape(end)}")
        return [path for path in self.directory.glob("features-*") if named.fullmatch(path.name)]


def _row_of(path: Path) -> tuple[tuple[int, ...], torch.dtype]:
    """The shape and the type of a file's rows."""
    shape, suffix, *_ = path.name.split("-")[2].split(".")
    return tuple(int(size) for size in shape.split("x")), _TYPES[suffix]


def _row_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _mapped(path: Path, dtype: torch.dtype) -> Tensor:
    """All numbers of a file, mapped into memory; NumPy knows no bfloat16, so they are bytes."""
    content = np.memmap(path, np.uint8, mode="r")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(content).view(dtype)


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
    needed = sum((file.rows - file.rows_done()) * _row_bytes(shape, file.dtype) for file in files)
    for path in directory.glob(f"features-{ONE_TIME}*"):
        with suppress(OSError):  # Windows does not delete a file that is being read
            path.unlink()
    budget = DiskBudget(directory, "features-*", size_gb, share=0.5)
    in_use = [path for path in budget.sizes if path.name.split("-")[1] in kept]
    room = max(0, budget.limit - sum(budget.sizes[path] for path in in_use))
    if needed > room or not budget.make_room(needed, in_use=in_use):  # nothing is deleted in vain
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

    `views` are tensors (N, ...) of any float type, one for each view of the images; epoch e sees
    view e modulo their number. `features[i]` is sample i as epoch 0 sees it, in float32.
    """

    def __init__(self, images: ImageDataset, views: Sequence[Tensor]) -> None:
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
        return torch.stack(rows).float(), self.labels[[key.index for key in keys]]

    def first_view(self) -> tuple[Tensor, Tensor]:
        """The features of the first view, (N, ...), as they are stored, and labels (N,)."""
        return self.views[0], self.labels


def feature_loader(
    images: ImageLoader, dataset: ImageDataset, views: Sequence[Tensor]
) -> DataLoader:
    """A loader that delivers the features of what `images` would deliver, batch for batch."""
    return DataLoader(
        FeatureDataset(dataset, views),
        batch_sampler=copy.copy(images.batch_sampler),
        collate_fn=default_convert,  # the data set collates
        generator=torch.Generator(),  # never used: the default one stays as it is
    )
