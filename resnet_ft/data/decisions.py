"""What a person decides about single images, in a small CSV file; the images stay as they are.

Columns: `path` (below the data folder), `decision`, `value`, `reason`. "exclude" leaves an image
out, "relabel" gives it to the class `value`, "move" to the split `value`; "keep" says that somebody
looked at it and found it right. An image may have a row for its class and another for its split;
"keep" and "exclude" replace both, and are replaced by either.
"""

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from resnet_ft.data.index import DatasetIndex
from resnet_ft.errors import DatasetError
from resnet_ft.files import atomic_write, fingerprint, user_path
from resnet_ft.reading import read_table, reading, write_table
from resnet_ft.remote import is_address, masked

_DECISIONS = ("keep", "exclude", "relabel", "move")
_WHOLE = ("keep", "exclude")  # about the image as it is, not about its class or its split
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
    unknown = table.index.difference(list(row_of)).unique()
    if len(unknown):
        warnings.warn(
            f"{name}: {len(unknown)} of {table.index.nunique()} are about images that are not in "
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
    runs_dir, relative_to = user_path(runs_dir), user_path(relative_to)
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
    """The decisions in a CSV file that are in force: of each path one, or its class and its split.

    The last one of a kind counts, and "keep" and "exclude" take back what is above them. Raises
    DatasetError, naming the line, for anything else.
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
    return _in_force(table)


def _in_force(table: pd.DataFrame) -> pd.DataFrame:
    """Of each path the last "keep" or "exclude", or the last "relabel" and "move" below it."""
    table = table.drop_duplicates(["path", "decision"], keep="last").reset_index(drop=True)
    row = pd.Series(table.index, table.index)
    whole = row.where(table["decision"].isin(_WHOLE), -1).groupby(table["path"]).transform("max")
    last = row.groupby(table["path"]).transform("max")
    return table[(row > whole) | ((row == whole) & (row == last))].reset_index(drop=True)


def write_decisions(table: pd.DataFrame, file: str | Path) -> Path:
    """Write decisions to a CSV file, over those that it held."""
    with atomic_write(file) as temporary:
        write_table(table.reindex(columns=_COLUMNS, fill_value=""), temporary)
    return user_path(file)


class DecisionLog:
    """The decisions in a CSV file; a missing file holds none.

    Each call reads the file again, since another window or an editor may have changed it.
    """

    def __init__(self, file: str | Path):
        self.file = user_path(file)
        self._undo: list[tuple[list[str], pd.DataFrame]] = []

    def __getitem__(self, path: str) -> dict[str, str]:
        """The decisions about an image with their values, such as {"relabel": "bees"}."""
        rows = self._rows()
        rows = rows[rows["path"] == path]
        return dict(zip(rows["decision"], rows["value"], strict=True))

    def decide(
        self, paths: str | Sequence[str], decision: str, value: str = "", *, reason: str = ""
    ) -> None:
        """Write a decision about one image or several; "" takes all back that was decided.

        A new class leaves the split that was decided as it is, and a new split the class.
        """
        paths, rows = [paths] if isinstance(paths, str) else list(paths), self._rows()
        self._undo.append((paths, rows[rows["path"].isin(paths)]))
        if decision:
            new = pd.DataFrame({"path": paths}).assign(
                decision=decision, value=value, reason=reason
            )
            rows = _in_force(pd.concat([rows, new]))
        else:
            rows = rows[~rows["path"].isin(paths)]
        write_decisions(rows, self.file)

    def undo(self) -> list[str]:
        """Take the last call of `decide` back; returns the paths that it was about, if any."""
        if not self._undo:
            return []
        paths, before = self._undo.pop()
        rows = self._rows()
        write_decisions(pd.concat([rows[~rows["path"].isin(paths)], before]), self.file)
        return paths

    def decided(self) -> set[str]:
        """The paths that have a decision."""
        return set(self._rows()["path"])

    def _rows(self) -> pd.DataFrame:
        if not self.file.exists():
            return pd.DataFrame(columns=_COLUMNS, dtype=object)
        return read_decisions(self.file)
