"""Decisions as they are made: each on disk at once, each to be taken back."""

from pathlib import Path

import pandas as pd

from resnet_ft.data.decisions import read_decisions, write_decisions


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
