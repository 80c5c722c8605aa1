"""The files of a run: how they are written, so that a reader never sees half of one.

A resume state is what a run continues from. It goes to two files in turn, last.0.pt and last.1.pt,
so one of them is always complete: what `torch.save` writes of plain data, then the number of the
save and a SHA-256 of both. Reading one runs no code from it. Google Drive puts a replaced file into
its Trash; writing over the same two names leaves nothing there.
"""

import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, cast

import torch
from filelock import FileLock, Timeout

from resnet_ft.errors import RunError
from resnet_ft.files import default_cache_dir, fingerprint, rewrite
from resnet_ft.reading import in_words, read_json, read_saved

_NAMES = ("last.0.pt", "last.1.pt")
_NOTE = "folder.txt"  # in a fallback: whose it is
_NUMBER, _DIGEST = 8, 32  # bytes
ResumeState = dict[str, object]


class Storage:
    """Writes into a run's folder; while that fails (Drive is full or gone), to `fallback` instead.

    The run continues, warns at once, and tries the folder again with every further write. The
    fallback is that of this run in this folder; if the folder is renamed, it moves along.
    """

    def __init__(self, folder: Path, run_id: str | None):
        self.folder = folder
        place = fingerprint([os.path.realpath(folder)])
        self._of_run = default_cache_dir() / "runs" / str(run_id)
        self.fallback = self._of_run / place
        self._lock = FileLock(default_cache_dir() / "runs" / f"{place}.lock")
        self._in_fallback: set[str] = set()
        self._newest: str | None = None  # which of the two resume states in the folder counts
        with suppress(OSError):
            orphans = [one for one, of in self._others() if not _is_run(of, run_id)]
            if orphans and not self.fallback.exists():
                max(orphans, key=_newest_number).rename(self.fallback)
                self._note_folder()

    def _others(self) -> Iterator[tuple[Path, Path]]:
        """Fallbacks of this run in other folders, and these folders."""
        for note in self._of_run.glob(f"*/{_NOTE}"):
            if note.parent != self.fallback:
                yield note.parent, Path(note.read_text(encoding="utf-8", errors="surrogateescape"))

    def _note_folder(self) -> None:
        text = os.path.realpath(self.folder)
        (self.fallback / _NOTE).write_text(text, encoding="utf-8", errors="surrogateescape")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this machine out. Raises RunError where one is training."""
        lock = self._lock
        try:
            self._of_run.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"Another process of this machine is training {self.folder}. Wait for it or stop "
                "it, then run the same again."
            ) from error
        except OSError:  # nobody can write there, so nobody can be kept out
            pass
        try:
            yield
        finally:
            lock.release()

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Let `write` make a file at a temporary path, then give it its name."""

        def write_and_rename(folder: Path) -> None:
            with rewrite(folder / name) as temporary:
                write(temporary)

        self._write_in(name, write_and_rename)

    def write_resume_state(self, number: int, state: ResumeState) -> None:
        """Write over the older of the two files: the newer one counts if this is interrupted."""
        name = _other(self._newest)
        if self._write_in(name, lambda folder: write_resume_state(folder / name, number, state)):
            self._newest = name

    def read_resume_state(self) -> tuple[int, ResumeState] | None:
        """The newest resume state, in the folder or the fallback, and its number."""
        newest = read_newest([self.folder, self.fallback])
        if newest is None:
            return None
        path, number, state = newest
        if path.parent == self.folder:
            self._newest = path.name
        else:  # the one of this name in the folder is the one that could not be written
            self._newest = _other(path.name)
            self._in_fallback.add(path.name)
        for other, of in self._others():
            if _newest_number(other) > number:
                warnings.warn(
                    f"{of} is a copy of the run in {self.folder}, and has a newer save in {other}. "
                    f"To continue from that, train {of}.",
                    stacklevel=2,
                )
        return number, state

    def has_home(self, name: str) -> bool:
        """Whether the file of this name is in the run's folder, and not in the fallback."""
        return name not in self._in_fallback and (self.folder / name).is_file()

    def has_resume_state(self) -> bool:
        """Whether there is a file to resume from."""
        return any(resume_states_in(folder) for folder in (self.folder, self.fallback))

    def empty_older(self, number: int) -> None:
        """Free the space of the older file, once the other one holds the save of this number."""
        for name in _NAMES:
            path, older = self.folder / name, self.folder / _other(name)
            both = path.is_file() and older.is_file()
            if both and _number(path) == number != _number(older):
                os.truncate(older, 0)  # a deleted file would go to Google Drive's Trash

    def bring_home(self) -> None:
        """Move files from the fallback to the folder; warn of those that cannot be moved."""
        for name in sorted(name for name in self._in_fallback if (self.fallback / name).is_file()):
            self.write(name, partial(shutil.copyfile, self.fallback / name))
        if not self._in_fallback:
            shutil.rmtree(self.fallback, ignore_errors=True)
        else:
            warnings.warn(
                f"{self.folder} could not be written to: {', '.join(sorted(self._in_fallback))} of "
                f"this run are in {self.fallback}, on this machine. Make room or mount Drive "
                "again, then run the training again: it moves them there and resumes.",
                stacklevel=2,
            )

    def _write_in(self, name: str, write: Callable[[Path], object]) -> bool:
        """Let `write` make the file in the run's folder, else in the fallback; say which."""
        try:
            if not self.folder.is_dir():  # do not make it anew where Drive was mounted
                raise FileNotFoundError(f"the folder {self.folder} is gone")
            write(self.folder)
            self._in_fallback.discard(name)
            return True
        except OSError as caught:
            error = caught
        where = f"it is in {self.fallback}, on this machine, until the folder can be written again"
        try:
            self.fallback.mkdir(parents=True, exist_ok=True)
            self._note_folder()
            write(self.fallback)
        except OSError as second:
            where = f"it could not be written to {self.fallback} either ({second}): make room"
        if name not in self._in_fallback:
            warnings.warn(
                f"{name} could not be written to {self.folder} ({error}). The run continues: "
                f"{where}",
                stacklevel=3,
            )
        self._in_fallback.add(name)
        return False


def _is_run(folder: Path, run_id: str | None) -> bool:
    """Whether a folder still holds the run of this id."""
    try:
        return read_json(folder / "config.json").get("id") == run_id
    except (OSError, ValueError, RecursionError):
        return False


def _newest_number(folder: Path) -> int:
    return max(map(_number, resume_states_in(folder)), default=0)


def resume_states_in(folder: Path) -> list[Path]:
    """The files of a folder that hold a resume state, damaged ones included."""
    paths = (folder / name for name in _NAMES)
    return [path for path in paths if path.is_file() and path.stat().st_size]


def read_newest(folders: Iterable[Path]) -> tuple[Path, int, ResumeState] | None:
    """The newest complete resume state: its path, its number, its content; None without any.

    Warns of files that are damaged. Raises RunError where all of them are.
    """
    found = [path for folder in folders for path in resume_states_in(folder)]
    damaged: list[str] = []
    for path in sorted(found, key=_number, reverse=True):
        try:
            content = _read(path)
        except Exception as error:  # a damaged file can fail in any way
            damaged.append(f"{path} cannot be read ({in_words(error)})")
            continue
        if damaged:
            warnings.warn(
                f"{'; '.join(damaged)}. The run resumes from {path}, which is older.", stacklevel=2
            )
        return path, _number(path), content
    if damaged:
        raise RunError(
            f"The run cannot be resumed: {'; '.join(damaged)}. Choose another run_dir, or move "
            "these files away if you no longer need them."
        )
    return None


def write_resume_state(path: Path, number: int, state: ResumeState) -> None:
    """Write over one of the two files and flush it to the disk.

    Without the other file, which counts if this is interrupted, it gets its name at the end.
    """
    other = path.with_name(_other(path.name))
    temporary = path if other in resume_states_in(path.parent) else path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        checked = _ChecksummedFile(file)
        torch.save(state, cast(IO[bytes], checked))  # it needs no more than write and flush
        checked.write(number.to_bytes(_NUMBER, "big"))
        checked.finish()
        os.fsync(file.fileno())
    if temporary != path:
        os.replace(temporary, path)


class _ChecksummedFile:
    """A file for `torch.save`, which ends the process where `write` raises an error."""

    def __init__(self, file: BinaryIO):
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
        """Do nothing: `torch.save` expects the method."""

    def finish(self) -> None:
        """Add the digest; raise the first error, if there was one."""
        if self._error is not None:
            raise self._error
        self._file.write(self._digest.digest())
        self._file.flush()


def _other(name: str | None) -> str:
    return _NAMES[1] if name == _NAMES[0] else _NAMES[0]


def _number(path: Path) -> int:
    """The number of the save, higher for newer ones; 0 for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _NUMBER - _DIGEST))
            return int.from_bytes(file.read(_NUMBER), "big")
    except OSError:
        return 0


def _read(path: Path) -> ResumeState:
    data = memoryview(path.read_bytes())
    if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise ValueError("it is incomplete or was changed")
    payload = io.BytesIO(data[: -_NUMBER - _DIGEST])
    content: ResumeState = read_saved(payload)
    return content
