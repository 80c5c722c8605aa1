"""Which images, classes and splits a data folder holds, and what is wrong with that."""

import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from resnet_ft.data.folders import PathArray, subfolders, walk_names
from resnet_ft.errors import DatasetError
from resnet_ft.files import fingerprint


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


_VAL_SHARE = 0.2


def set_aside(images: ImageTable) -> ImageTable:
    """Move about a fifth of each class to "val": at least one image of it, and never all.

    A hash of each path decides, so that an image stays where it is when others are added; only in
    a class so small that no hash is low enough, the lowest is taken, and may change. Raises
    DatasetError for a class of one image.
    """
    labels = images.labels
    share = pd.Series(np.fromiter(map(_hash_share, images.paths), float, len(images)))
    of_class = share.groupby(labels["class_name"], observed=True)
    lowest, highest = of_class.transform("min"), of_class.transform("max")
    alone = labels.loc[lowest == highest, "class_name"].unique()
    if alone.size:
        raise DatasetError(
            f"Class {alone[0]} has a single image: one is needed for training and one for "
            "validation. Add images, or remove the class."
        )
    aside = ((share < _VAL_SHARE) | (share == lowest)) & (share < highest)
    return replace(images, labels=labels.assign(split=labels["split"].mask(aside, "val")))


def _hash_share(path: str) -> float:
    """A number in [0, 1) that depends on the path alone."""
    return int(sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16) / 2**32


SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class _Problem(NamedTuple):
    """Why a data set cannot be trained on: the file or folder, and what to do about it."""

    path: Path
    message: str


class _Group(NamedTuple):
    """How many images a class has in a split."""

    split: str
    class_name: str
    count: int


@dataclass(frozen=True)
class Layout:
    """What `read_layout` found: the paths of `images` are relative to `root`."""

    root: Path
    images: ImageTable
    problems: list[_Problem]

    @property
    def classes(self) -> list[str]:
        """The class names of the training split, sorted."""
        labels = self.images.labels
        return sorted(labels.loc[labels["split"] == "train", "class_name"].unique())


def read_layout(data_dir: str | Path) -> Layout:
    """Find the images below a folder, by split and class, and what stands in the way of training.

    What is understood is written at `index_dataset`. Raises DatasetError only for a folder that
    does not exist.
    """
    root = _unwrap(Path(data_dir))
    folders, problems = _split_folders(root)
    groups = []
    found = (_read_split(root, *pair, groups, problems) for pair in folders)
    paths = PathArray(chain.from_iterable(found))  # at once, so that no list of them is made
    images = ImageTable(paths, _labels(groups))
    if {split for split, _ in folders} == {"train"}:
        try:
            images = set_aside(images)
        except DatasetError as error:
            problems.append(_Problem(root, str(error)))
    problems += _disagreements(root, images.labels)
    return Layout(root, images, problems)


def _unwrap(folder: Path) -> Path:
    """Step into a folder that only wraps the data set, as archives often do."""
    if not folder.is_dir():
        raise DatasetError(
            f"There is no folder {folder}. Check data_dir, or stage the data set first."
        )
    inside = subfolders(folder)
    while len(inside) == 1 and inside[0].name.lower() not in _SPLIT_NAMES and subfolders(inside[0]):
        folder, inside = inside[0], subfolders(inside[0])
    return folder


def _split_folders(root: Path) -> tuple[list[tuple[str, Path]], list[_Problem]]:
    named = [(_SPLIT_NAMES.get(path.name.lower()), path) for path in subfolders(root)]
    folders: dict[str, Path] = {}
    problems = []
    for split, path in named:
        if split and split in folders:
            message = f"{folders[split]} and {path} are both {split}. Merge or rename one."
            problems.append(_Problem(path, message))
        folders.setdefault(split, path)
    found = [(split, path) for split, path in named if split]
    if found and "train" not in folders:
        beside = ", ".join(str(path) for _, path in found)
        message = f"{root} has no Train folder beside {beside}. Name the training one Train."
        problems.append(_Problem(root, message))
    if "val" not in folders:
        found = [("val" if split == "test" else split, path) for split, path in found]
    return found or [("train", root)], problems


def _read_split(
    root: Path, split: str, folder: Path, groups: list[_Group], problems: list[_Problem]
) -> Iterator[str]:
    """Each image of a split, relative to `root`; adds to `groups` and `problems` on the way."""
    class_folders = subfolders(folder)
    if not class_folders:
        message = (
            f"{folder} has no class folders. Put the images of each class into a folder of its "
            "own, named after the class."
        )
        problems.append(_Problem(folder, message))
    for class_folder in class_folders:
        # macOS writes accents as characters of their own: the same name in two spellings.
        class_name = unicodedata.normalize("NFC", class_folder.name)
        count = 0
        for parent, names in walk_names(class_folder):
            prefix = parent.relative_to(root).as_posix()
            yield from (f"{prefix}/{name}" for name in names)
            count += len(names)
        if count:
            groups.append(_Group(split, class_name, count))
        else:
            message = f"{class_folder} holds no images. Add some, or remove the folder."
            problems.append(_Problem(class_folder, message))


def _labels(groups: list[_Group]) -> pd.DataFrame:
    """Split and class of each image, as categories, in the order of the groups."""
    groups = pd.DataFrame(groups, columns=_Group._fields, dtype=object)
    labels = pd.DataFrame(
        {
            "split": pd.Categorical(groups["split"], SPLITS),
            "class_name": groups["class_name"].astype("category"),
        }
    )
    return labels.iloc[np.repeat(labels.index, groups["count"].astype(int))].reset_index(drop=True)


def _disagreements(root: Path, labels: pd.DataFrame) -> list[_Problem]:
    problems = []
    known_pairs = labels.drop_duplicates().astype(object)
    classes = {split: set(rows) for split, rows in known_pairs.groupby("split")["class_name"]}
    known = classes.pop("train", set())
    if len(known) == 1:
        message = f"{root} has a single class ({min(known)}). A classifier needs two or more."
        problems.append(_Problem(root, message))
    for split, names in classes.items():
        if names - known:
            message = (
                f"{root}: {split} has classes that Train lacks: {', '.join(sorted(names - known))}"
                ". Add them to Train, or rename the folders so that both agree."
            )
            problems.append(_Problem(root, message))
    return problems


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
