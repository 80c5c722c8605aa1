"""Which images, classes and splits a data folder holds."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from resnet_ft.data.layout import SPLITS, read_layout
from resnet_ft.errors import DatasetError
from resnet_ft.files import fingerprint


@dataclass(frozen=True)
class DatasetIndex:
    """What `index_dataset` found.

    `table` has a row an image: `path` (relative to `root`), `split` ("train", "val" or "test") and
    `class_name`; `classes` are the class names of the training split, sorted.
    """

    root: Path
    classes: list[str]
    table: pd.DataFrame

    def split(self, name: str) -> pd.DataFrame:
        """The rows of one split."""
        return self.table[self.table["split"] == name].reset_index(drop=True)

    def paths(self) -> list[Path]:
        """Every image's path."""
        return [self.root / path for path in self.table["path"]]

    def without(self, paths: Iterable[str | Path]) -> "DatasetIndex":
        """The index without these files, which cannot be read, say."""
        out = {os.path.relpath(path, self.root).replace(os.sep, "/") for path in paths}
        kept = self.table[~self.table["path"].isin(out)]
        return replace(self, table=kept.reset_index(drop=True))

    def counts(self) -> pd.DataFrame:
        """Images by class (rows) and split (columns)."""
        counts = pd.crosstab(self.table["class_name"], self.table["split"])
        splits = [name for name in SPLITS if name in counts]
        counts = counts.reindex(index=self.classes, columns=splits, fill_value=0)
        return counts.rename_axis(index=None, columns=None)

    def fingerprint(self) -> str:
        """A digest of every file's path, split and size: equal for equal data sets."""
        rows = self.table.itertuples(index=False)
        return fingerprint(
            [part for path, *rest in rows for part in (path, *rest, self._size(path))]
        )

    def _size(self, path: str) -> int:
        return (self.root / path).stat().st_size


def index_dataset(data_dir: str | Path) -> DatasetIndex:
    """Find the images below a folder, by split and class.

    Understands `Train`/`Val`(/`Test`) folders of class folders, in any case and under their usual
    other names, and class folders alone. Without `Val`, `Test` takes its place; without both, about
    a fifth of each class is set aside (see `set_aside`). Hidden and system files are left out.
    Raises DatasetError, naming folder and remedy, for a data set that cannot be trained on.
    """
    layout = read_layout(data_dir)
    if layout.problems:
        raise DatasetError(layout.problems[0].message)
    return DatasetIndex(layout.root, layout.classes, layout.table)
