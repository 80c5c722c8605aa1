"""What a user put into a folder: its visible folders and images, without leftovers of systems."""

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from resnet_ft.data.images import IMAGE_EXTENSIONS

_SYSTEM_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin"})
_ENDINGS = tuple(IMAGE_EXTENSIONS)


def is_hidden(name: str) -> bool:
    """Whether an entry is hidden or made by a system: .DS_Store, __MACOSX, Thumbs.db, ..."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def walk_folders(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each visible folder with the sorted names of all its files and of its hidden folders.

    A linked folder is entered once, so that links in a circle come to an end.
    """
    entered = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        hidden = {name for name in folders if is_hidden(name)}
        folders[:] = sorted(set(folders) - hidden)
        yield Path(parent), sorted([*names, *hidden])


def walk_images(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each visible folder with the names of its images (a Path would keep each in memory)."""
    for parent, names in walk_folders(folder):
        images = [name for name in names if name.lower().endswith(_ENDINGS)]
        yield parent, [name for name in images if not is_hidden(name)]


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
