"""Features on disk, and the data set that delivers them in place of images."""

import atexit
import copy
import os
import shutil
import tempfile
import warnings
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnet_ft.data.dataset import ImageDataset, SampleKey
from resnet_ft.errors import TrainingError

_DTYPE = np.dtype(np.float16)
NAMELESS = "once"  # how keys begin that are drawn at random
_RESERVE = 2**30  # bytes of the disk that are left to others


class FeatureFile:
    """`rows` rows in half precision in a directory, under a key that nothing else has."""

    def __init__(self, directory: Path, key: str, rows: int):
        self.directory = Path(directory)
        self.key = key
        self.rows = rows

    def find(self) -> np.ndarray | None:
        """The finished array of shape (rows, ...), mapped into memory, if it is there."""
        found = self._path(".f16")
        if found is None:
            return None
        shape = _row_shape(found)
        if found.stat().st_size != self.rows * _row_bytes(shape):  # a copy that was cut off, say
            return None
        with suppress(OSError):  # where only reading is allowed
            found.touch()  # what was used last is deleted last
        return np.memmap(found, _DTYPE, mode="r", shape=(self.rows, *shape))

    def forget(self) -> None:
        """Delete what there is, finished or not."""
        for found in filter(None, map(self._path, (".f16", ".part"))):
            found.unlink()

    def rows_done(self) -> int:
        """How many rows an interrupted process left."""
        part = self._path(".part")
        return part.stat().st_size // _row_bytes(_row_shape(part)) if part else 0

    def append(self, features: np.ndarray) -> None:
        """Add rows in half precision, over what a killed process left of half a one."""
        shape = features.shape[1:]
        part = self._path(".part") or self._named(shape, ".part")
        whole = self.rows_done() * _row_bytes(shape)
        with part.open("r+b" if part.exists() else "w+b") as file:
            file.truncate(whole)
            file.seek(whole)
            file.write(features.tobytes())

    def finish(self) -> None:
        """Give the file its final name, once all rows are there."""
        part = self._path(".part")
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, part.with_suffix(".f16"))

    def bytes_missing(self, shape: tuple[int, ...]) -> int:
        """How much larger the file becomes, with rows of this shape."""
        return (self.rows - self.rows_done()) * _row_bytes(shape)

    def _path(self, suffix: str) -> Path | None:
        return next(iter(self.directory.glob(f"features-{self.key}-*{suffix}")), None)

    def _named(self, shape: tuple[int, ...], suffix: str) -> Path:
        sizes = "x".join(str(size) for size in shape)
        return self.directory / f"features-{self.key}-{sizes}{suffix}"


def writable(directory: Path) -> Path:
    """The directory, or one for this process alone where it cannot be written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "features.lock").touch()
        return directory
    except OSError as error:
        elsewhere = Path(tempfile.mkdtemp(prefix="resnet_ft-"))
        atexit.register(shutil.rmtree, elsewhere, ignore_errors=True)
        warnings.warn(
            f"{directory} cannot be written to ({error}), so features are kept in {elsewhere} "
            "until this process ends. Give another cache_dir to keep them for longer.",
            stacklevel=3,
        )
        return elsewhere


@contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """Raise TrainingError, with the remedy, where the disk is full or goes away."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"What the frozen layers put out could not be kept in {directory} ({error}). What is "
            "there already will be used: make room, or give another cache_dir, and call it again."
        ) from error


def forget_nameless(directory: Path) -> None:
    """Delete features of transforms that cannot be told apart, which nobody can ever find again."""
    for path in directory.glob(f"features-{NAMELESS}*"):
        with suppress(OSError):  # Windows does not delete a file that is being read
            path.unlink()


def make_room(directory: Path, needed: int, size_gb: float | None, kept: Container[str]) -> None:
    """Delete features that were not used for longest, until `needed` bytes are free.

    Those with the keys `kept` stay. Raises TrainingError where the others are not enough.
    """
    files = [path for path in directory.glob("features-*") if path.suffix in (".f16", ".part")]
    used = sum(path.stat().st_size for path in files)
    limit = _limit(directory, used, size_gb)
    others = [path for path in files if path.stem.split("-")[1] not in kept]
    for path in sorted(others, key=lambda path: path.stat().st_mtime):
        if used + needed > limit:
            used -= path.stat().st_size
            path.unlink()
    if used + needed > limit:
        raise TrainingError(
            f"What the frozen layers put out needs {needed / 2**20:,.1f} MiB in {directory}, where "
            f"{max(0, limit - used) / 2**20:,.1f} MiB may be used. Freeze more (freeze(model, "
            'until="fc") needs least), take fewer views, a larger cache_size_gb or another '
            "cache_dir, or train without precompute."
        )


def _limit(directory: Path, used: int, size_gb: float | None) -> float:
    """Bytes that all files together may have; half of what the disk has by default."""
    most = used + max(0, shutil.disk_usage(directory).free - _RESERVE)
    return most / 2 if size_gb is None else min(size_gb * 2**30, most)


def _row_shape(path: Path) -> tuple[int, ...]:
    return tuple(int(size) for size in path.stem.split("-")[2].split("x"))


def _row_bytes(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * _DTYPE.itemsize


class FeatureDataset(Dataset):
    """(features, label) pairs of an image data set, whose classes, samples and so on it has.

    `views` are arrays (N, ...), one for each view of the images; epoch e sees view e modulo their
    number. `features[i]` is sample i as epoch 0 sees it.
    """

    def __init__(self, images: ImageDataset, views: Sequence[np.ndarray]):
        self.views = views
        self.labels = torch.from_numpy(images.labels)
        for name in ("classes", "samples", "targets", "preprocessing", "fingerprint", "unreadable"):
            setattr(self, name, getattr(images, name))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        features, labels = self.__getitems__([SampleKey(0, i)])
        return features[0], int(labels[0])

    def whole(self) -> tuple[Tensor, Tensor]:
        """All features of the first view, (N, ...) floats, and labels (N,)."""
        return torch.from_numpy(np.array(self.views[0])).float(), self.labels

    def __getitems__(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor]:
        """A whole batch, as DataLoader asks for it."""
        rows = [self.views[key.epoch % len(self.views)][key.index] for key in keys]
        return torch.from_numpy(np.stack(rows)).float(), self.labels[[key.index for key in keys]]


def feature_loader(images: DataLoader, views: Sequence[np.ndarray]) -> DataLoader:
    """A loader that delivers the features of what `images` would deliver, batch for batch."""
    return DataLoader(
        FeatureDataset(images.dataset, views),
        batch_sampler=copy.copy(images.batch_sampler),
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # which nothing draws from: the default one stays untouched
    )


def _as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch
