"""A million paths in the memory of their characters, for processes that share it."""

import os
from array import array
from collections.abc import Iterable, Sequence

import numpy as np


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
