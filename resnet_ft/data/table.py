"""A table of images, their splits and classes, in the memory of their paths."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from resnet_ft.data.paths import PathArray


@dataclass(frozen=True, eq=False)
class ImageTable:
    """The `paths` of images and, row by row, their `labels`: `split` and `class_name`, categories.

    One DataFrame of both would hold an object for each path.
    """

    paths: PathArray
    labels: pd.DataFrame

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> "ImageTable":
        """Keep a DataFrame with the columns `path`, `split` and `class_name`."""
        labels = frame[["split", "class_name"]].reset_index(drop=True).astype("category")
        return cls(PathArray(frame["path"]), labels)

    def to_frame(self) -> pd.DataFrame:
        """A DataFrame with the columns `path`, `split` and `class_name`."""
        frame = self.labels.copy()
        frame.insert(0, "path", pd.Series(list(self.paths), dtype=object))
        return frame

    def take(self, rows: np.ndarray) -> "ImageTable":
        """These rows: their numbers, or a mask."""
        rows = np.arange(len(self))[rows]
        return ImageTable(self.paths.take(rows), self.labels.iloc[rows].reset_index(drop=True))

    def __len__(self) -> int:
        return len(self.paths)
