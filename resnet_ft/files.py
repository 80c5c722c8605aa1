"""Writing files so that a reader never takes half a one, and telling one data set from another."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes its place once the block has ended well.

    A block that raises leaves `path` as it was and the temporary file removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def rewrite(path: str | Path) -> Iterator[Path]:
    """Like `atomic_write`, for a file that is written over and over.

    On Google Drive, where what is replaced fills the Trash, an existing file is overwritten. Who is
    killed in that moment leaves half of it, so this is for what is kept elsewhere as well.
    """
    path = Path(path)
    if not (is_on_drive(path) and path.exists()):
        with atomic_write(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / path.name
        shutil.copyfile(Path(folder) / path.name, path)


def is_on_drive(path: str | Path) -> bool:
    """Whether a path lies in a mounted Google Drive (My Drive or a shared one)."""
    return not {"MyDrive", "Shareddrives"}.isdisjoint(Path(path).absolute().parts)


def fingerprint(parts: Iterable[object]) -> str:
    """A short digest (16 hexadecimal digits of SHA-256) that changes when any of `parts` does."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def default_cache_dir() -> Path:
    """Where the library keeps what it can make again: `resnet_ft` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet_ft"
