"""What a user put into a folder: its visible folders and images, without leftovers of systems."""

import errno
import os
import re
import stat
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from resnet_ft.data.images import IMAGE_EXTENSIONS, begins_like_image
from resnet_ft.errors import DatasetError

_SYSTEM_NAMES = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
    | {"$recycle.bin", "system volume information", "lost+found", "found.000"}
    | {"@eadir", "#recycle", "@recycle", "@tmp", "#snapshot", "@recently-snapshot"}  # of a NAS
)
_EXTENSION = re.compile(r"\.[^\W\d][\w~-]*")  # not ".0001", ". Bernard 3", ".jpg?width=500"


def is_hidden(name: str) -> bool:
    """Whether an entry is hidden or made by a system: .DS_Store, __MACOSX, Thumbs.db, @eaDir."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def is_image(name: str, folder: str = "") -> bool:
    """Whether Pillow has a decoder for a file: its extension says so or, without one, its bytes."""
    if name[name.rfind(".") :].lower() in IMAGE_EXTENSIONS:
        return True
    if _EXTENSION.fullmatch(os.path.splitext(name)[1]):
        return False
    path = os.path.join(folder, name)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe could wait for ever
            return False
        with open(path, "rb") as file:
            return begins_like_image(file.read(16))
    except OSError as error:  # if it is not just gone, its reader says what is wrong with it
        return error.errno not in (errno.ENOENT, errno.ELOOP)


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted by name.

    Raises DatasetError if it cannot be listed, or holds a link to a folder that is not there.
    """
    _, names, files = next(os.walk(folder, onerror=_refuse))
    for name in files:
        if not is_hidden(name) and not os.path.exists(folder / name):
            raise DatasetError(
                f"{folder / name} leads to {os.path.realpath(folder / name)}, which is not there. "
                "Mount its drive, or remove this link."
            )
    return sorted(folder / name for name in names if not is_hidden(name))


def holds_images(folder: Path) -> bool:
    """Whether an image lies directly in a folder."""
    try:
        with os.scandir(folder) as entries:
            visible = (entry.path for entry in entries if not is_hidden(entry.name))
            return any(is_image(path) and not os.path.isdir(path) for path in visible)
    except OSError as error:
        _refuse(error)


def walk_folders(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each visible folder, its images, and its other files and hidden folders, sorted by name.

    A linked folder is entered once, so that links in a circle come to an end. Raises DatasetError
    where a folder cannot be listed.
    """
    entered = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        hidden = {name for name in folders if is_hidden(name)}
        folders[:] = sorted(set(folders) - hidden)
        names.sort()
        likely = [name for name in names if is_image(name, parent)]
        images = [name for name in likely if not is_hidden(name)]
        others = hidden.union(names).difference(images) if len(images) < len(names) else hidden
        yield Path(parent), images, sorted(others)


def _refuse(error: OSError) -> NoReturn:
    raise DatasetError(
        f"{error.filename} cannot be listed, so its images would be missing: {error.strerror}. "
        "Check the path, whether you may read it, and whether its drive is mounted."
    ) from error


def walk_images(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each visible folder with the names of its images (a Path would keep each in memory)."""
    return ((parent, images) for parent, images, _ in walk_folders(folder))


def find_images(folder: Path) -> Iterator[Path]:
    """Every image file below a folder, in a stable order."""
    return (parent / name for parent, names in walk_images(folder) for name in names)


class PathArray:
    """Paths in two arrays: their bytes, one after the other, and where each begins.

    A list would hold one object per path, and forked workers would copy them one by one: even a
    look at an object writes its reference count.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]):
        text, ends = bytearray(), array("q", [0])
        for path in paths:
            text += os.fsencode(path)
            ends.append(len(text))
        self._text = np.frombuffer(bytes(text), np.uint8)
        self._ends = np.array(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:
        if not -len(self) <= i < len(self):
            raise IndexError(f"{i} is not one of {len(self)} paths")
        i %= len(self)
        return os.fsdecode(self._text[self._ends[i] : self._ends[i + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def take(self, rows: Iterable[int]) -> "PathArray":
        """The paths in these rows."""
        return PathArray(self[int(row)] for row in rows)
