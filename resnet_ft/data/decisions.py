"""What a person decides about single images, in a small CSV file; their own files stay as they are.

Columns: `path` (below the data folder), `decision`, `value`, `reason`. "exclude" leaves an image
out, "relabel" gives it to the class `value`, "move" to the split `value`; "keep" says that it was
looked at and is right.
"""

import re
import warnings
from pathlib import Path

import pandas as pd

from resnet_ft.data.index import DatasetIndex, ImageTable
from resnet_ft.errors import DatasetError
from resnet_ft.files import atomic_write, fingerprint

DECISIONS = ("keep", "exclude", "relabel", "move")
_COLUMNS = ["path", "decision", "value", "reason"]


def read_decisions(file: str | Path) -> pd.DataFrame:
    """The decisions in a CSV file, one for each path (the last one counts).

    Raises DatasetError, naming the line, for a file that cannot be read as one.
    """
    try:
        table = pd.read_csv(
            file,
            dtype=str,
            keep_default_na=False,
            index_col=False,
            encoding_errors="surrogateescape",
        )
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"The decisions in {file} cannot be read: {error}. Give a CSV file with the columns "
            f"{', '.join(_COLUMNS)}, such as Audit.write_decisions makes."
        ) from error
    return _checked(table, str(file))


def _checked(table: pd.DataFrame, name: str) -> pd.DataFrame:
    if not {"path", "decision"} <= set(table):
        raise DatasetError(
            f"{name} has the columns {', '.join(table)}, but decisions need path and decision."
        )
    table = table.reindex(columns=_COLUMNS, fill_value="")
    for line, row in enumerate(table.itertuples(), start=2):
        if row.decision not in DECISIONS:
            raise DatasetError(
                f"{name}, line {line}: {row.decision!r} is no decision about {row.path}. Write one "
                f"of {', '.join(DECISIONS)}."
            )
    return table.drop_duplicates("path", keep="last").reset_index(drop=True)


def decisions_file(runs_dir: str | Path, data_dir: str) -> Path:
    """Where the notebooks keep the decisions about a data set: a CSV file in `runs_dir`.

    A folder and the archive that was packed from it beside it share one; an address counts without
    what follows its question mark.
    """
    source = str(data_dir).split("?")[0].split("#")[0].rstrip("/")
    source = re.sub(r"\.(zip|tar|tgz|txz|tbz2|tar\.(gz|xz|bz2))$", "", source, flags=re.IGNORECASE)
    name = re.sub(r"[^\w.-]+", "_", source.split("/")[-1]).strip("._")[:60] or "data"
    return Path(runs_dir) / f"decisions-{name}-{fingerprint([source])[:8]}.csv"


def write_decisions(table: pd.DataFrame, file: str | Path) -> Path:
    """Write decisions in place of those in the file."""
    with atomic_write(file) as temporary:
        table = table.reindex(columns=_COLUMNS, fill_value="")
        table.to_csv(temporary, index=False, errors="surrogateescape")
    return Path(file)


def apply_decisions(index: DatasetIndex, decisions: str | Path | pd.DataFrame) -> DatasetIndex:
    """The index as it is after these decisions, a table or a CSV file of them.

    Decisions about images that are no longer there are counted in a warning. Raises DatasetError
    for a class or split that there is not, and where what is left cannot be trained on.
    """
    if isinstance(decisions, pd.DataFrame):
        name, decisions = "The table of decisions", _checked(decisions, "The table of decisions")
    else:
        name, decisions = str(decisions), read_decisions(decisions)
    decisions = decisions[decisions["decision"] != "keep"].set_index("path")
    named = set(decisions.index)
    row_of = {path: row for row, path in enumerate(index.images.paths) if path in named}
    unknown = decisions.index.difference(list(row_of))
    if len(unknown):
        warnings.warn(
            f"{name}: {len(unknown)} of {len(decisions)} are about images that are not in "
            f"{index.root}, such as {unknown[0]}. They are passed over.",
            stacklevel=3,
        )
    decisions = decisions.drop(unknown)
    _check_values(decisions, name, {"relabel": index.classes, "move": list(index.counts())})
    decided = _decided(index, decisions.rename(index=row_of))
    for split, before in index.counts().items():
        after = decided.counts().get(split, 0 * before)
        lost = before.index[(before > 0) & (after == 0)]
        if len(lost):
            raise DatasetError(
                f"{name}: no image of class {lost[0]} is left in {split}. Keep at least one of "
                "them: change those decisions."
            )
    return decided


def _decided(index: DatasetIndex, decisions: pd.DataFrame) -> DatasetIndex:
    """The index after decisions about its images in these rows."""
    labels = index.images.labels.copy()
    for decision, column in (("relabel", "class_name"), ("move", "split")):
        values = decisions.loc[decisions["decision"] == decision, "value"]
        labels.loc[values.index, column] = values
    excluded = decisions.index[decisions["decision"] == "exclude"]
    images = ImageTable(index.images.paths, labels).take(labels.index.drop(excluded))
    return DatasetIndex(index.root, index.classes, images)


def _check_values(decisions: pd.DataFrame, name: str, known: dict[str, list[str]]) -> None:
    for decision, values in known.items():
        chosen = decisions[decisions["decision"] == decision]
        for path, value in chosen["value"].items():
            if value not in values:
                raise DatasetError(
                    f"{name}: {path} is to {decision} to {value!r}, which there is not. Choose one "
                    f"of {', '.join(values)}."
                )


class DecisionLog:
    """The decisions in a CSV file, one for each path; a missing file holds none."""

    def __init__(self, file: str | Path):
        self.file = Path(file)
        self._undo: list[tuple[str, dict | None]] = []

    def __getitem__(self, path: str) -> tuple[str, str]:
        """Decision and value, both empty where nothing was decided."""
        row = self._rows().get(path, {})
        return row.get("decision", ""), row.get("value", "")

    def decide(self, path: str, decision: str, value: str = "", *, reason: str = "") -> None:
        """Write a decision about an image in place of an earlier one; "" takes that back."""
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
        """The paths that there is a decision about."""
        return set(self._rows())

    def _rows(self) -> dict[str, dict]:
        """What the file says now: another window, or an editor, may have changed it."""
        rows = read_decisions(self.file).to_dict("records") if self.file.exists() else []
        return {row["path"]: row for row in rows}

    def _set(self, path: str, row: dict | None) -> None:
        rows = self._rows()
        rows.pop(path, None)
        if row is not None:
            rows[path] = row
        write_decisions(pd.DataFrame(list(rows.values())), self.file)
