"""What a folder holds that its user put there: no hidden files, no leftovers of systems."""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from resnet_ft.data.images import IMAGE_EXTENSIONS

_SYSTEM_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin"})


def is_hidden(name: str) -> bool:
    """Whether an entry is hidden or made by a system: .DS_Store, __MACOSX, Thumbs.db, ..."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def find_images(folder: Path) -> Iterator[Path]:
    """Every image file below a folder, in a stable order; a linked folder is entered once."""
    for _, images in walk_images(folder):
        yield from images


def walk_images(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each visible folder, from `folder` down, with the image files that lie in it."""
    for parent, names in walk_names(folder):
        yield parent, [parent / name for name in names]


def walk_names(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """What `walk_images` walks, as names: a Path interns its name, in memory that is kept."""
    for parent, _, names in walk_once(folder):
        images = [
            name
            for name in names
            if not is_hidden(name) and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS
        ]
        yield parent, images


def walk_once(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each visible folder with the names of its hidden folders and of all its files, sorted.

    A linked folder is entered once, so that links in a circle come to an end.
    """
    entered = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        hidden = sorted(name for name in folders if is_hidden(name))
        folders[:] = sorted(set(folders) - set(hidden))
        yield Path(parent), hidden, sorted(names)


class PathArray(Sequence[str]):
    """Paths in two arrays: their bytes, one after the other, and where each begins.

    A list would hold an object for each path. Workers that were forked would copy them one by one,
    since even to look at an object is to write its reference count.
    """

    def __init__(self, paths: Iterable[str | os.PathLike]):
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

    def take(self, rows: Iterable[int]) -> "PathArray":
        """The paths in these rows."""
        return PathArray(self[int(row)] for row in rows)
