"""The files of a run: resume states of which one is always whole, and where they go meanwhile."""

import hashlib
import io
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from resnet_ft.errors import RunError
from resnet_ft.files import default_cache_dir, rewrite

_NAMES = ("last.0.pt", "last.1.pt")
_NUMBER, _DIGEST = 8, 32  # bytes


def snapshots_in(folder: Path) -> list[Path]:
    """The files of a folder that hold where a run stands, or did before they were damaged."""
    paths = (folder / name for name in _NAMES)
    return [path for path in paths if path.is_file() and path.stat().st_size]


def read_newest(folders: Iterable[Path]) -> tuple[Path, int, dict[str, object]] | None:
    """The newest whole file of these folders, its number and its content; None without any.

    Warns of files that are damaged. Raises RunError where all of them are.
    """
    found = [path for folder in folders for path in snapshots_in(folder)]
    damaged = {}
    for path in sorted(found, key=_number, reverse=True):
        try:
            content = _read(path)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            damaged[path] = str(error).split("\n", 1)[0]
            continue
        if damaged:
            warnings.warn(
                f"{_listed(damaged)}. The run goes on from {path}, which was saved before.",
                stacklevel=2,
            )
        return path, _number(path), content
    if damaged:
        raise RunError(
            f"The run cannot be continued: {_listed(damaged)}. Choose another run_name, or move "
            "these files away if what they held is no longer wanted."
        )
    return None


def next_name(name: str | None) -> str:
    """The name of the file to write after this one."""
    return _NAMES[1] if name == _NAMES[0] else _NAMES[0]


def write_snapshot(path: Path, number: int, content: dict[str, object]) -> None:
    """Write over one of the two files, and see that it is on the disk.

    Without the other one, which is what counts if this breaks off, it gets its name at the end.
    """
    other = path.with_name(next_name(path.name))
    has_other = other.is_file() and other.stat().st_size
    temporary = path if has_other else path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        checked = _Checked(file)
        torch.save(content, checked)
        checked.write(number.to_bytes(_NUMBER, "big"))
        checked.finish()
        os.fsync(file.fileno())
    if temporary != path:
        os.replace(temporary, path)


def empty_older(folder: Path, number: int) -> None:
    """Free the space of the file that does not have the save of this number, if the other has."""
    for name in _NAMES:
        path, other = folder / name, folder / next_name(name)
        if path.is_file() and other.is_file() and _number(path) == number != _number(other):
            os.truncate(other, 0)  # a file that is deleted would go to the Trash of Google Drive


class _Checked:
    """A file for `torch.save`, which takes an error for a reason to end the process."""

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        self._digest = hashlib.sha256()
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        """As `torch.save` expects of a file."""

    def finish(self) -> None:
        """Add the digest; raise the first error, if there was one."""
        if self._error is not None:
            raise self._error
        self._file.write(self._digest.digest())
        self._file.flush()


def _number(path: Path) -> int:
    """Which save the file says it is: the higher, the newer; 0 where it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _NUMBER - _DIGEST))
            return int.from_bytes(file.read(_NUMBER), "big")
    except OSError:
        return 0


def _read(path: Path) -> dict[str, object]:
    data = memoryview(path.read_bytes())
    if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise ValueError("it was not written to its end, or was changed")
    payload = io.BytesIO(data[: -_NUMBER - _DIGEST])
    return torch.load(payload, map_location="cpu", weights_only=True)


def _listed(damaged: dict[Path, str]) -> str:
    return "; ".join(f"{path} cannot be read ({reason})" for path, reason in damaged.items())


class Storage:
    """Writes into a folder; what fails (it is full, or Drive is gone) goes to `refuge` instead.

    The run goes on, is warned of it at once, and every further write tries the folder again.
    """

    def __init__(self, folder: Path, run_id: str):
        self.folder = folder
        self.refuge = default_cache_dir() / "runs" / f"{folder.name}-{run_id}"
        self._elsewhere: set[str] = set()
        self.last_whole: str | None = None  # the newest of last.0.pt and last.1.pt in the folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes of this machine out. Raises RunError where one is in already."""
        lock = FileLock(f"{self.refuge}.lock")
        try:
            self.refuge.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"{self.folder} is being trained by another process of this machine. Wait for its "
                "end, or end it, and run the same again."
            ) from error
        except OSError:  # nobody can write there, so nobody can be kept out
            pass
        try:
            yield
        finally:
            lock.release()

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Let `write` make a file at a temporary path, and give it its name."""

        def whole(folder: Path) -> None:
            with rewrite(folder / name) as temporary:
                write(temporary)

        self.write_in(name, whole)

    def write_in(self, name: str, write: Callable[[Path], object]) -> bool:
        """Let `write` make the file of this name in a folder; whether that is the run's own."""
        try:
            if not self.folder.is_dir():  # or else it would be made anew where Drive was mounted
                raise FileNotFoundError(f"there is no folder {self.folder} any more")
            write(self.folder)
            self._elsewhere.discard(name)
            return True
        except OSError as error:
            self._take_refuge(name, write, error)
            return False

    def remember(self, name: str) -> None:
        """Know of a file that is in the refuge since an earlier time."""
        self._elsewhere.add(name)

    def settle(self) -> None:
        """Bring what is in the refuge home, and warn of what cannot be brought."""
        for name in sorted(name for name in self._elsewhere if (self.refuge / name).is_file()):
            self.write(name, lambda path, name=name: shutil.copyfile(self.refuge / name, path))
        if not self._elsewhere:
            shutil.rmtree(self.refuge, ignore_errors=True)
        else:
            warnings.warn(
                f"{self.folder} could not be written to: {', '.join(sorted(self._elsewhere))} of "
                f"this run are in {self.refuge}, on this machine. Make room or mount Drive again, "
                "and run the training again, which then brings them there and goes on.",
                stacklevel=2,
            )

    def _take_refuge(self, name: str, write: Callable[[Path], object], error: OSError) -> None:
        known = name in self._elsewhere
        self._elsewhere.add(name)
        found = f"it is in {self.refuge}, on this machine, until the folder can be written to again"
        try:
            self.refuge.mkdir(parents=True, exist_ok=True)
            write(self.refuge)
        except OSError as second:
            found = f"it could not be written to {self.refuge} either ({second}): make room on both"
        if not known:
            warnings.warn(
                f"{name} could not be written to {self.folder} ({error}). The run goes on: {found}",
                stacklevel=4,
            )
