"""What a person decides about single images, in a small CSV file; the images stay as they are.

Columns: `path` (below the data folder), `decision`, `value`, `reason`. "exclude" leaves an image
out, "relabel" gives it to the class `value`, "move" to the split `value`; "keep" says that somebody
looked at it and found it right.
"""

import os
import re
import warnings
from pathlib import Path

import pandas as pd

from resnet_ft.data.index import DatasetIndex
from resnet_ft.errors import DatasetError
from resnet_ft.files import atomic_write, fingerprint
from resnet_ft.reading import read_table, reading, write_table
from resnet_ft.remote import is_address, masked

_DECISIONS = ("keep", "exclude", "relabel", "move")
_COLUMNS = ["path", "decision", "value", "reason"]


def apply_decisions(index: DatasetIndex, decisions: str | Path | pd.DataFrame) -> DatasetIndex:
    """The index after these decisions, a table or a CSV file of them.

    Decisions about images that no longer exist are counted in a warning. Raises DatasetError for an
    unknown class or split, and where a class loses all its images in a split.
    """
    if isinstance(decisions, pd.DataFrame):
        name = "The table of decisions"
        table = _checked(decisions, name)
    else:
        name, table = str(decisions), read_decisions(decisions)
    table = table[table["decision"] != "keep"].set_index("path")
    named = set(table.index)
    row_of = {path: row for row, path in enumerate(index.images) if path in named}
    unknown = table.index.difference(list(row_of))
    if len(unknown):
        warnings.warn(
            f"{name}: {len(unknown)} of {len(table)} are about images that are not in "
            f"{index.root}, such as {unknown[0]}. They are ignored.",
            stacklevel=3,
        )
    table = table.drop(unknown)
    labels = index.labels.copy()
    for decision, column, known in (
        ("relabel", "class_name", index.classes),
        ("move", "split", list(index.counts())),
    ):
        values = table.loc[table["decision"] == decision, "value"]
        wrong = values[~values.isin(known)]
        if len(wrong):
            raise DatasetError(
                f"{name}: the decision {decision} about {wrong.index[0]} names {wrong.iloc[0]!r}, "
                f"which does not exist. Choose one of {', '.join(known)}."
            )
        labels.loc[values.index.map(row_of), column] = values.to_numpy()
    excluded = [row_of[path] for path in table.index[table["decision"] == "exclude"]]
    changed = DatasetIndex(index.root, index.classes, labels, index.images)
    decided = changed.take(labels.index.drop(excluded))
    for split, class_name in decided.lost_since(index):
        raise DatasetError(
            f"{name}: no image of class {class_name} is left in {split}. Change those decisions to "
            "keep at least one of them."
        )
    return decided


def decisions_file(runs_dir: str | Path, data_dir: str, *, relative_to: str | Path = ".") -> Path:
    """Where the notebooks keep the decisions about a data set: a CSV file in `runs_dir`.

    It is the same file for every spelling of a folder (a relative path starts at `relative_to`) and
    for an archive of that name beside it; the query of a URL does not count. A file of an earlier
    version, for another spelling, is used where it is the only one; a warning names any other.
    """
    spellings = list(dict.fromkeys([masked(data_dir), str(data_dir)]))
    if data_dir != "sample" and not is_address(data_dir):
        base = os.path.realpath(relative_to)
        full = os.path.realpath(os.path.join(base, os.path.expanduser(data_dir)))
        below = os.path.relpath(full, base) if Path(full).is_relative_to(base) else full
        below = full if below == "sample" else below  # a folder, not the library's own sample
        spellings = [below, str(data_dir), full, f"./{below}"]
    files = list(dict.fromkeys(Path(runs_dir, _file_name(each)) for each in spellings))
    cut = re.split("[?#]", str(data_dir))[0]  # as earlier versions did: of several data sets
    shared = [Path(runs_dir, _file_name(cut))] if cut != str(data_dir) else []
    found = [file for file in files if file.exists()]
    unused = [str(file) for file in found[1:] + shared if file not in files[:1] and file.exists()]
    if unused:
        warnings.warn(
            f"Decisions about {masked(data_dir)} may also be in {', '.join(unused)}, which an "
            f"earlier version wrote. Copy the rows that you still want to {(found or files)[0]}.",
            stacklevel=2,
        )
    return (found or files)[0]


def _file_name(source: str) -> str:
    if is_address(source):
        source = re.split("[?#]", source)[0]
    source = source.replace(os.sep, "/").rstrip("/")
    source = re.sub(r"\.(zip|tar|tgz|txz|tbz2|tar\.(gz|xz|bz2))$", "", source, flags=re.IGNORECASE)
    name = re.sub(r"[^\w.-]+", "_", source.split("/")[-1]).strip("._")[:60] or "data"
    return f"decisions-{name}-{fingerprint([source])[:8]}.csv"


def read_decisions(file: str | Path) -> pd.DataFrame:
    """The decisions in a CSV file, one per path (the last one counts).

    Raises DatasetError, naming the line, for anything else.
    """
    remedy = (
        f"Give a CSV file with the columns {', '.join(_COLUMNS)}, such as Audit.write_decisions "
        "makes."
    )
    with reading(f"The decisions in {file}", DatasetError, remedy):
        table = read_table(file, (), is_number=lambda name: False)
    return _checked(table, str(file))


def _checked(table: pd.DataFrame, name: str) -> pd.DataFrame:
    if not {"path", "decision"} <= set(table):
        raise DatasetError(
            f"{name} has the columns {', '.join(table)}, but decisions need path and decision."
        )
    table = table.reindex(columns=_COLUMNS, fill_value="")
    for line, row in enumerate(table.itertuples(), start=2):
        if row.decision not in _DECISIONS:
            raise DatasetError(
                f"{name}, line {line}: {row.decision!r} is not a decision about {row.path}. Write "
                f"one of {', '.join(_DECISIONS)}."
            )
    return table.drop_duplicates("path", keep="last").reset_index(drop=True)


def write_decisions(table: pd.DataFrame, file: str | Path) -> Path:
    """Write decisions to a CSV file, over those that it held."""
    with atomic_write(file) as temporary:
        write_table(table.reindex(columns=_COLUMNS, fill_value=""), temporary)
    return Path(file)


class DecisionLog:
    """The decisions in a CSV file, one per path; a missing file holds none.

    Each call reads the file again, since another window or an editor may have changed it.
    """

    def __init__(self, file: str | Path):
        self.file = Path(file)
        self._undo: list[tuple[str, dict[str, str] | None]] = []

    def __getitem__(self, path: str) -> tuple[str, str]:
        """Decision and value, both empty where nothing was decided."""
        row = self._rows().get(path, {})
        return row.get("decision", ""), row.get("value", "")

    def decide(self, path: str, decision: str, value: str = "", *, reason: str = "") -> None:
        """Write a decision about an image, over an earlier one; "" takes that back."""
        self._undo.append((path, self._rows().get(path)))
        new = {"path": path, "decision": decision, "value": value, "reason": reason}
        self._set(path, new if decision else None)

    def undo(self) -> str | None:
        """Take the last decision back; returns the path that it was about."""
        if not self._undo:
            return None
        path, before = self._undo.pop()
        self._set(path, before)
        return path

    def decided(self) -> set[str]:
        """The paths that have a decision."""
        return set(self._rows())

    def _rows(self) -> dict[str, dict[str, str]]:
        rows = read_decisions(self.file).to_dict("records") if self.file.exists() else []
        return {row["path"]: row for row in rows}

    def _set(self, path: str, row: dict[str, str] | None) -> None:
        rows = self._rows()
        rows.pop(path, None)
        if row is not None:
            rows[path] = row
        write_decisions(pd.DataFrame(list(rows.values())), self.file)
