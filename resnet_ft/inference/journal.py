"""A table that grows in a CSV file, a batch of rows at a time, and that a later call continues.

Beside the file, `<name>.json` says what its rows depend on: a table of another model is refused,
neither continued nor replaced. Rows are only ever appended, so a killed process leaves whole rows
and at most a part of one, which is cut off.
"""

import csv
import errno
import glob
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from resnet_ft import distributed
from resnet_ft.errors import DriveError, ParameterError
from resnet_ft.files import atomic_write
from resnet_ft.reading import as_text, in_words, read_json, reading

_MARK = b"\xef\xbb\xbf"  # by which spreadsheets know UTF-8
_ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}
_REMEDY = "Choose another name for the table, or delete this one."
_PART = "part"  # of the files: which of several processes computes it
_TRIAL = 1 << 20  # bytes that are written at once to see whether there is room


class Journal:
    """Rows in a CSV file. `about` says what they depend on: plain data, by the name of each."""

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        about: Mapping[str, object],
        *,
        may_move: bool = True,
    ):
        self.path = path
        self.columns = [*columns]
        self.about = json.loads(json.dumps(about))  # as a file gives it back
        self.may_move = may_move  # to a temporary folder, where it cannot be written

    @property
    def _about_file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def check(self, *, overwrite: bool) -> None:
        """Raise ParameterError where the file or parts of it hold rows of something else.

        With `overwrite`, they are deleted instead. All processes have to call this.
        """
        problem = next(filter(None, map(self._problem, [self.path, *self._parts()])), None)
        distributed.wait()  # until all have looked
        if problem and not overwrite:
            raise ParameterError(f"{problem}. {_REMEDY} (overwrite=True does that.)")
        if problem and distributed.is_main():
            self.remove()
        distributed.wait()

    def _problem(self, path: Path) -> str | None:
        """Why the rows in a file are not of this table."""
        about_file = path.with_name(f"{path.name}.json")
        if not path.is_file():
            return None
        if not about_file.exists():
            return f"{path} is there already, and no {about_file.name} beside it says of what"
        try:
            found = read_json(about_file)
        except (OSError, ValueError) as error:
            return f"{about_file} cannot be read ({in_words(error)})"
        found.pop(_PART, None)
        differences = [
            f"{name} ({found[name]}, now {self.about[name]})"
            if isinstance(found.get(name), int) and isinstance(self.about.get(name), int)
            else name
            for name in {**self.about, **found}
            if found.get(name) != self.about.get(name)
        ]
        return f"{path} is of another {', '.join(differences)}" if differences else None

    def keep_whole(self, total: int, at_once: int) -> int:
        """Cut off what a killed process left of a row or a batch; how many rows of `total` remain.

        Whole batches remain, so that those to come have the same images as in one go. Raises
        ParameterError for a file that another program has changed.
        """
        if not self.path.is_file():
            return 0
        rows, end, end_of_batches, is_whole = -1, 0, 0, True  # the heading is no row
        with reading(self.path, ParameterError, _REMEDY), self.path.open("rb") as file:
            for row, position in _with_ends(file):
                if not is_whole or rows == total:
                    raise ValueError(f"row {rows + 1} is not as it was written")
                is_whole = len(row) == len(self.columns) and (rows >= 0 or row == self.columns)
                if is_whole:
                    rows, end = rows + 1, position
                    end_of_batches = end if rows % at_once == 0 else end_of_batches
        if rows < total:
            rows, end = rows - rows % at_once, end_of_batches
        if end < self.path.stat().st_size:
            os.truncate(self.path, end)
        return max(0, rows)

    def try_to_write(self, size: int) -> None:
        """Raise DriveError where `size` more bytes cannot be written."""
        try:
            if self.path.is_dir():
                raise IsADirectoryError("it is a folder")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            trial = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            try:
                with trial.open("wb") as file:
                    for _ in range(-(-size // _TRIAL)):
                        file.write(bytes(min(size, _TRIAL)))
            finally:
                trial.unlink(missing_ok=True)
        except OSError as error:
            raise DriveError(
                f"{self.path} cannot be written ({error}). Choose another place for the table, or "
                "make room."
            ) from error

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """Add rows to the file, and the heading to a new one. Raises OSError."""
        is_new = not self.path.exists() or not self.path.stat().st_size
        if is_new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._describe()
        text = io.StringIO(newline="")
        # A name may hold either half of this end of a line, and is then quoted.
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerows([self.columns] if is_new else [])
        writer.writerows([as_text(cell) for cell in row] for row in rows)
        content = (_MARK if is_new else b"") + text.getvalue().encode(**_ENCODING)
        with self.path.open("ab", buffering=0) as file:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _describe(self) -> None:
        with atomic_write(self._about_file) as temporary:
            temporary.write_text(json.dumps(self.about, indent=1) + "\n", encoding="utf-8")

    def remove(self) -> None:
        """Delete the file, its parts and what is beside them."""
        for path in (self.path, self._about_file):
            path.unlink(missing_ok=True)
        self._remove_parts()

    def part(self, number: int, count: int) -> "Journal":
        """The journal of one of several processes."""
        path = self.path.with_name(f"{self.path.name}.part-{number}-of-{count}")
        return Journal(path, self.columns, {**self.about, _PART: number}, may_move=False)

    def join(self, parts: Sequence["Journal"]) -> None:
        """Become all the rows of the parts, one part after the other, and delete these."""
        self._describe()
        with atomic_write(self.path) as temporary, temporary.open("wb") as whole:
            for part in parts:
                with part.path.open("rb") as file:
                    heading = file.readline()
                    whole.write(b"" if whole.tell() else heading)
                    shutil.copyfileobj(file, whole)
        self._remove_parts()

    def _parts(self) -> list[Path]:
        found = self.path.parent.glob(f"{glob.escape(self.path.name)}.part-*-of-*")
        return sorted(path for path in found if path.suffix != ".json")

    def _remove_parts(self) -> None:
        for path in self._parts():
            Journal(path, (), {}).remove()


def _with_ends(file: BinaryIO) -> Iterator[tuple[list[str], int]]:
    """The rows of a CSV file, each with the position after it; not a last line without an end."""
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield line.removeprefix(_MARK).decode(**_ENCODING)

    for row in csv.reader(lines()):
        yield row, end
