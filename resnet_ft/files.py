"""Files that are never read half written, and caches that leave room on the disk."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as people give it: "~" at its beginning is the home folder."""
    return Path(os.path.expanduser(path))  # unlike Path's own, it takes "~$photo.jpg" as it is


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` when the block succeeds.

    A block that raises leaves `path` as it was and the temporary file removed.
    """
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def rewrite(path: str | Path) -> Iterator[Path]:
    """Like `atomic_write`, for a file that is written again and again.

    On Google Drive, where a replaced file fills the Trash, an existing file is overwritten. A
    process killed at that moment leaves half of it, so keep what matters in another file as well.
    """
    path = user_path(path)
    if not (is_on_drive(path) and path.exists()):
        with atomic_write(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / path.name
        shutil.copyfile(Path(folder) / path.name, path)


def is_on_drive(path: str | Path) -> bool:
    """Whether a path lies in a mounted Google Drive (My Drive or a shared one)."""
    return not {"MyDrive", "Shareddrives"}.isdisjoint(user_path(path).absolute().parts)


def fingerprint(parts: Iterable[object]) -> str:
    """A short digest (16 hexadecimal digits of SHA-256) that changes when any of `parts` does."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def default_cache_dir() -> Path:
    """Where the library keeps what it can make again: `resnet_ft` in the user's cache folder."""
    return platformdirs.user_cache_path("resnet_ft", appauthor=False)


_RESERVE = 2**30  # bytes of the disk that caches leave free


class DiskBudget:
    """How many bytes the files of a cache, `pattern` in `folder`, may take: `used` of `limit`.

    The limit is `size_gb` GiB, but at most what the disk has; by default, a `share` of that.
    """

    def __init__(
        self, folder: Path, pattern: str, size_gb: float | None = None, *, share: float = 1.0
    ) -> None:
        found = []
        for path in folder.glob(pattern):
            with suppress(FileNotFoundError):  # another process deletes too
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        self.sizes = {path: size for _, size, path in sorted(found)}  # least recently used first
        self.used = sum(self.sizes.values())
        on_disk = self.used + max(0, shutil.disk_usage(folder).free - _RESERVE)
        self.limit = int(on_disk * share if size_gb is None else min(size_gb * 2**30, on_disk))

    def make_room(self, needed: int, *, in_use: Container[Path] = ()) -> bool:
        """Delete the least recently used files, none `in_use`; whether `needed` bytes then fit."""
        for path in list(self.sizes):
            if self.used + needed > self.limit and path not in in_use:
                with suppress(OSError):  # Windows does not delete a file that is being read
                    path.unlink(missing_ok=True)
                    self.used -= self.sizes.pop(path)
        return self.used + needed <= self.limit
