"""A hidden folder beside a target for unfinished work, for one process at a time."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

RESUMABLE = "download"  # the folder in it that outlives an interrupted call: the next one resumes
_SUFFIX = ".unfinished"
_LOCK = "lock"
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `target`; other processes wait until the block ends.

    A killed process holds no lock. What killed processes left beside `target`, also for other
    targets, is removed, except for what can be resumed.
    """
    folder = _folder_of(target)
    for other in target.parent.glob(f".*{_SUFFIX}"):
        if other != folder:
            with suppress(Timeout):  # its process is alive
                _remove(other, _locked(other, wait=False))
    lock = _locked(folder, wait=True)
    try:
        _clear(folder)
        yield folder
    finally:
        _remove(folder, lock)


def is_unfinished(target: Path) -> bool:
    """Whether a process is at work on `target`, or was killed before it had finished."""
    return _folder_of(target).exists()


def _folder_of(target: Path) -> Path:
    return target.with_name(f".{target.name}{_SUFFIX}")


def _locked(folder: Path, *, wait: bool) -> BaseFileLock:
    """Make and lock a folder. Raises Timeout where another process has it, unless `wait`."""
    lock, timeout = FileLock(folder / _LOCK), 0
    for _ in range(1000):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout)
        except (FileNotFoundError, FileExistsError):
            continue  # the last user has just removed the folder
        except Timeout:
            if not wait:
                raise
            print(f"Another process is at work in {folder}: waiting until it has finished ...")
            timeout = -1
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # a file system without locks: work unlocked
                raise
        return lock
    raise TimeoutError(f"{folder} could not be locked")


def _remove(folder: Path, lock: BaseFileLock) -> None:
    """Remove a locked folder, except for what can be resumed, and release its lock."""
    with suppress(OSError):  # the next call removes what cannot be removed now
        _clear(folder)
        (folder / _LOCK).unlink()  # while it is locked: filelock never takes an unlinked file
    lock.release()
    with suppress(OSError):
        folder.rmdir()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and path.name != RESUMABLE:
            shutil.rmtree(path)
        elif path.name not in (RESUMABLE, _LOCK):
            path.unlink()
