"""What earlier looks at files found: facts by file, in one SQLite file that processes share."""

import json
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

_BATCH = 256  # files whose facts are written together
_PATIENCE_S = 60.0  # while another process writes
_TABLE = "facts_1"  # another number where the facts change their meaning

_CREATE = f"""CREATE TABLE IF NOT EXISTS {_TABLE}
(path BLOB PRIMARY KEY, bytes INTEGER, changed_ns INTEGER, facts TEXT, thumbnail BLOB)"""
_FIND = f"SELECT facts, thumbnail FROM {_TABLE} WHERE path = ? AND bytes = ? AND changed_ns = ?"
_KEEP = f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?, ?)"

_Result = TypeVar("_Result")


class FactStore:
    """Facts by a file's path, size and time of change: of a file that changed nothing is known.

    Facts are dictionaries of plain values, among them `bytes` and `changed_ns`, and a `thumbnail`
    of bytes. They are written some hundred at a time, and each time whole: a process that is killed
    loses its last ones and harms nothing. A store that cannot be used warns and knows nothing.
    """

    def __init__(self, cache_dir: str | Path):
        self.path = Path(cache_dir) / "facts.sqlite3"
        self._waiting: list[tuple] = []
        self._usable = True
        self._attempt(lambda database: database.execute(_CREATE))

    def __enter__(self) -> "FactStore":
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def find(self, paths: Iterable[Path]) -> dict[Path, dict]:
        """The facts of those files that are known."""
        return self._attempt(lambda database: dict(_known(database, paths))) or {}

    def keep(self, path: Path, facts: dict) -> None:
        """Remember the facts of a file; the last ones are written when the store is left."""
        plain = json.dumps({name: facts[name] for name in facts if name != "thumbnail"})
        row = (_key(path), facts["bytes"], facts["changed_ns"], plain, facts["thumbnail"])
        self._waiting.append(row)
        if len(self._waiting) >= _BATCH:
            self._write()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._attempt(lambda database: database.executemany(_KEEP, waiting))

    def _attempt(self, action: Callable[[sqlite3.Connection], _Result]) -> _Result | None:
        """Do something in one transaction. What goes wrong is told, and nothing more is tried."""
        if not self._usable:
            return None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_PATIENCE_S)) as database, database:
                return action(database)
        except (OSError, ValueError, sqlite3.Error) as error:
            self._usable = False
            warnings.warn(
                f"{self.path} cannot be used ({error}): every image is read again next time. "
                "Delete that file, or give another cache_dir.",
                stacklevel=3,
            )
        return None


def _known(database: sqlite3.Connection, paths: Iterable[Path]) -> Iterator[tuple[Path, dict]]:
    for path in paths:
        with suppress(OSError):  # of a file that is not there nothing is known
            status = os.stat(path)
            identity = (_key(path), status.st_size, status.st_mtime_ns)
            if row := database.execute(_FIND, identity).fetchone():
                yield path, json.loads(row[0]) | {"thumbnail": row[1]}


def _key(path: Path) -> bytes:
    return os.fsencode(os.path.abspath(path))
