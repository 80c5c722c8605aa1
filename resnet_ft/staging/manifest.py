"""What a copied folder holds, and from which state of the source each file comes."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import NamedTuple


class Stamp(NamedTuple):
    """The state of a file at the source, by which a change is noticed."""

    size: int
    mtime_ns: int


class Manifest:
    """A line for each file that was copied, appended at once: a kill loses none that is written.

    A line holds the path in the folder, the source's `Stamp`, and the size of the copy. The last
    line of a path counts; the half a line of a killed process is passed over.
    """

    def __init__(self, path: Path):
        self._folder = path.parent
        self._copied: dict[str, list[int]] = {}
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        content = self._file.read()
        for line in content.splitlines():
            try:
                name, *state = json.loads(line)
            except ValueError:
                continue
            self._copied[name] = state
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def holds(self, path: Path, stamp: Stamp) -> bool:
        """Whether the copy of a file is there, whole, and of this state of the source."""
        *known, size = self._copied.get(str(path), [None])
        try:
            return known == list(stamp) and os.stat(self._folder / path).st_size == size
        except OSError:
            return False

    def add(self, path: Path, stamp: Stamp, copied_size: int) -> None:
        """Note that a copy has taken its place."""
        self._copied[str(path)] = [*stamp, copied_size]
        self._file.write(json.dumps([str(path), *stamp, copied_size]).encode() + b"\n")
