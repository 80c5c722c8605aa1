"""Which images, classes and splits a data folder holds."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from resnet_ft.data.layout import SPLITS, read_layout
from resnet_ft.data.table import ImageTable
from resnet_ft.errors import DatasetError
from resnet_ft.files import fingerprint


class DatasetIndex:
    """What `index_dataset` found.

    `table` has a row an image: `path` (relative to `root`), `split` ("train", "val" or "test") and
    `class_name`; `classes` are the class names of the training split, sorted. The table is made
    anew whenever it is asked for, from `images`, which hold no object for each of them.
    """

    def __init__(self, root: Path, classes: list[str], table: pd.DataFrame | ImageTable):
        self.root = root
        self.classes = classes
        self.images = table if isinstance(table, ImageTable) else ImageTable.from_frame(table)

    def __repr__(self) -> str:
        return f"{self.root}: {len(self.images)} images of {len(self.classes)} classes"

    @property
    def table(self) -> pd.DataFrame:
        return self.images.to_frame()

    def split(self, name: str) -> pd.DataFrame:
        """The rows of one split."""
        return self.images.take(self.images.labels["split"] == name).to_frame()

    def paths(self) -> list[Path]:
        """Every image's path."""
        return [self.root / path for path in self.images.paths]

    def without(self, paths: Iterable[str | Path]) -> "DatasetIndex":
        """The index without these files, which cannot be read, say."""
        out = {os.path.relpath(path, self.root).replace(os.sep, "/") for path in paths}
        kept = np.fromiter((path not in out for path in self.images.paths), bool)
        return DatasetIndex(self.root, self.classes, self.images.take(kept))

    def counts(self) -> pd.DataFrame:
        """Images by class (rows) and split (columns)."""
        counts = pd.crosstab(self.images.labels["class_name"], self.images.labels["split"])
        splits = [name for name in SPLITS if name in counts]
        counts = counts.reindex(index=self.classes, columns=splits, fill_value=0)
        return counts.rename_axis(index=None, columns=None)

    def fingerprint(self) -> str:
        """A digest of every file's path, split and size: equal for equal data sets."""
        labels = self.images.labels
        rows = zip(self.images.paths, labels["split"], labels["class_name"], strict=True)
        return fingerprint(part for row in rows for part in (*row, self._size(row[0])))

    def _size(self, path: str) -> int:
        return os.stat(os.path.join(self.root, path)).st_size


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
    return DatasetIndex(layout.root, layout.classes, layout.images)
