"""Where unfinished work lies: a hidden folder beside its target, for one process at a time."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: there, one process at a time must stage the same source
    fcntl = None

KEPT = "download"  # the folder in it that outlives a broken call: a later one continues it
_SUFFIX = ".unfinished"
_LOCK = "lock"


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `target`; whoever else wants it waits until the end.

    The lock belongs to the open file, so a killed process holds none. Whatever killed ones left
    beside `target`, also for other targets, is removed, but for downloads that can be continued.
    """
    folder = _folder_of(target)
    for other in target.parent.glob(f".*{_SUFFIX}"):
        if other != folder and (abandoned := _locked(other, wait=False)):
            _release(other, abandoned)
    lock = _locked(folder, wait=True)
    try:
        _clear(folder)
        yield folder
    finally:
        _release(folder, lock)


def is_unfinished(target: Path) -> bool:
    """Whether somebody is at work on `target`, or was killed at it."""
    return _folder_of(target).exists()


def _folder_of(target: Path) -> Path:
    return target.with_name(f".{target.name}{_SUFFIX}")


def _locked(folder: Path, *, wait: bool) -> IO[str] | None:
    """The open lock file of a folder, which is made for it; None where another process has it."""
    for _ in range(1000):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = (folder / _LOCK).open("w")
        except FileNotFoundError:
            continue  # the folder has just been removed by its last user
        if not _acquired(lock, folder, wait):
            lock.close()
            return None
        if _is_there(lock, folder / _LOCK):
            return lock
        lock.close()
    raise TimeoutError(f"{folder} could not be locked")


def _acquired(lock: IO[str], folder: Path, wait: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if wait:
            print(f"Another process is at work in {folder}: waiting until it has finished ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        return wait
    except OSError:
        return True  # a file system without locks: better unlocked than not at all
    return True


def _is_there(lock: IO[str], path: Path) -> bool:
    """Whether a lock file still has its name: its last holder removed it, perhaps, as we waited."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _release(folder: Path, lock: IO[str]) -> None:
    with suppress(OSError):  # what cannot be removed now is removed by the next call
        _clear(folder)
        (folder / _LOCK).unlink()
        folder.rmdir()
    lock.close()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and path.name != KEPT:
            shutil.rmtree(path)
        elif path.name not in (KEPT, _LOCK):
            path.unlink()
