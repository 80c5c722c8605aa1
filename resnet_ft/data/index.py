"""Which images, classes and splits a data folder holds, and why it cannot be trained on."""

import os
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from resnet_ft.data.folders import PathArray, find_images, is_hidden, subfolders, walk_folders
from resnet_ft.data.layout import Layout, Remarks, like, listed, says_nothing, split_of
from resnet_ft.errors import DatasetError
from resnet_ft.files import fingerprint, user_path

SPLITS = ("train", "val", "test")
_VAL_SHARE = 0.2


def index_dataset(data_dir: str | Path) -> "DatasetIndex":
    """Find the images below a folder, by split and class.

    Understands `Train`/`Val`(/`Test`) folders of class folders, in any case and under their usual
    other names, and class folders alone. Without `Val`, `Test` replaces it; without both, about a
    fifth of each class becomes "val", chosen by a hash of the path. Hidden and system files are
    left out. A warning says what else is left out, and how folders were read that do not follow
    this plain layout. Raises DatasetError for a folder that cannot be listed, for one that may be
    meant in two ways, and for a data set that cannot be trained on.
    """
    index, problems, notes = read_layout(data_dir)
    if problems:
        raise DatasetError(problems[0][1])
    if notes:
        warnings.warn("\n".join(note for _, note in notes), stacklevel=2)
    return index


def held_out_images(data_dir: str | Path) -> list[Path]:
    """The photographs of a data set that no training learned from, to try a model on.

    All below its folder Test, with labels or without; where there is none, those of validation.
    """
    index = index_dataset(data_dir)
    for folder in subfolders(index.root):
        if split_of(folder)[0] == "test" and (images := list(find_images(folder))):
            return images
    rows = index.split("test" if "test" in index.counts() else "val")
    return [index.root / path for path in rows["path"]]


class DatasetIndex:
    """What `index_dataset` found.

    `images` are the paths of the images, relative to `root`, and `labels` has one row for each:
    `split` ("train", "val" or "test") and `class_name`, as categories. `table` has both, and is
    made when asked for. `classes` are the sorted class names of the training split.
    `val_is_set_aside` says whether "val" is a share of each class that `index_dataset` chose.
    """

    val_is_set_aside = False

    def __init__(
        self, root: Path, classes: list[str], table: pd.DataFrame, images: PathArray | None = None
    ):
        self.root = root
        self.classes = classes
        self.images = PathArray(table["path"]) if images is None else images
        self.labels = table[["split", "class_name"]].reset_index(drop=True).astype("category")

    def __repr__(self) -> str:
        return f"{self.root}: {len(self.images)} images of {len(self.classes)} classes"

    @property
    def table(self) -> pd.DataFrame:
        table = self.labels.copy()
        table.insert(0, "path", pd.Series(list(self.images), dtype=object))
        return table

    def take(self, rows: np.ndarray) -> "DatasetIndex":
        """The index of these rows alone: their numbers, or a mask."""
        rows = np.arange(len(self.images))[rows]
        return DatasetIndex(self.root, self.classes, self.labels.iloc[rows], self.images.take(rows))

    def without(self, paths: Iterable[str | Path]) -> "DatasetIndex":
        """The index without these files."""
        out = {os.path.relpath(path, self.root).replace(os.sep, "/") for path in paths}
        return self.take(np.fromiter((path not in out for path in self.images), bool))

    def split(self, name: str) -> pd.DataFrame:
        """The rows of one split."""
        return self.take(self.labels["split"] == name).table

    def paths(self) -> list[Path]:
        """The full path of every image."""
        return [self.root / path for path in self.images]

    def counts(self) -> pd.DataFrame:
        """Number of images by class (rows) and split (columns)."""
        counts = pd.crosstab(self.labels["class_name"], self.labels["split"])
        splits = [name for name in SPLITS if name in counts]
        counts = counts.reindex(index=self.classes, columns=splits, fill_value=0)
        return counts.rename_axis(index=None, columns=None)

    def lost_since(self, before: "DatasetIndex") -> list[tuple[str, str]]:
        """Each split and class that had images in an earlier index and has none in this one."""
        counts = before.counts()
        lost = (counts > 0) & ~(self.counts().reindex_like(counts) > 0)
        return [(split, name) for split in lost for name in lost.index[lost[split]]]

    def fingerprint(self) -> str:
        """A digest of every file's path, split, class and size: equal for equal data sets."""
        rows = zip(self.images, self.labels["split"], self.labels["class_name"], strict=True)
        return fingerprint(
            part for row in rows for part in (*row, os.path.getsize(f"{self.root}/{row[0]}"))
        )


def read_layout(data_dir: str | Path) -> tuple[DatasetIndex, Remarks, Remarks]:
    """What `index_dataset` describes, why it cannot be trained on, and what it warns of.

    Raises DatasetError for a folder that does not exist or cannot be listed.
    """
    data_dir = user_path(data_dir)
    if not os.path.isdir(data_dir):
        raise DatasetError(
            f"There is no folder {data_dir}, or you may not look at it. Check data_dir, or stage "
            "the data first."
        )
    layout = Layout(data_dir)
    root, problems, notes = layout.root, layout.problems, layout.notes
    groups: list[tuple[str, str, int]] = []  # split, class and number of images
    merged: list[str] = []  # folders within class folders
    files: list[str] = []  # those in class folders that are no images
    found = (_read_split(root, *part, groups, problems, merged, files) for part in layout.splits)
    paths = PathArray(chain.from_iterable(found))  # one by one, so that no list of them is made
    for things, what in (
        (merged, "Folders within class folders count as their class"),
        (files, "Files that are no images are not used"),
    ):
        message = f"{what} ({len(things):,}): {listed(things)}."
        notes += [(root / path, message) for path in things[:1]]

    table = pd.DataFrame(groups, columns=["split", "class_name", "count"], dtype=object)
    kinds = {"split": pd.CategoricalDtype(SPLITS), "class_name": "category"}
    rows = table.index.repeat(table["count"].astype(int))
    labels = table[list(kinds)].astype(kinds).loc[rows].reset_index(drop=True)
    if {split for split, _ in layout.splits} == {"train"}:
        labels["split"] = _with_val(root, paths, labels, problems)

    classes = {split: {name for of, name, _ in groups if of == split} for split in SPLITS}
    known = classes["train"]
    if len(known) == 1:
        message = f"{root} has a single class ({min(known)}). A classifier needs two or more."
        problems.append((root, message))
    twins = {like(name): name for name in sorted(known)}
    pairs = [f"{name} and {twins[like(name)]}" for name in sorted(known - {*twins.values()})]
    if pairs:
        notes.append((root, f"Train has classes whose names hardly differ: {listed(pairs)}."))
    for split, names in classes.items():
        strange = [
            f"{name} (is it {twins[like(name)]}?)" if like(name) in twins else name
            for name in sorted(names - known)
        ]
        if strange:
            message = (
                f"{root}: {split} has classes that Train lacks: {', '.join(strange)}"
                ". Add them to Train, or rename the folders so that both agree."
            )
            problems.append((root, message))
    index = DatasetIndex(root, sorted(known), labels, paths)
    index.val_is_set_aside = {split for split, _ in layout.splits} == {"train"}
    return index, problems, notes


def _read_split(
    root: Path,
    split: str,
    class_folders: list[Path],
    groups: list[tuple[str, str, int]],
    problems: Remarks,
    merged: list[str],
    files: list[str],
) -> Iterator[str]:
    """Each image of a split, relative to `root`; adds to the last four on the way."""
    for class_folder in class_folders:
        count = 0
        for parent, images, others in walk_folders(class_folder):
            prefix = parent.relative_to(root).as_posix()
            yield from (f"{prefix}/{name}" for name in images)
            count += len(images)
            files.extend(f"{prefix}/{name}" for name in others if not is_hidden(name))
            if images and parent != class_folder and not says_nothing(parent.name):
                merged.append(prefix)
        if count:
            # macOS writes an accent as a separate character: NFC makes both spellings the same.
            groups.append((split, unicodedata.normalize("NFC", class_folder.name), count))
        else:
            inside = sorted(os.listdir(class_folder))
            message = f"holds no images{', but ' if inside else ''}{listed(inside)}. Add some"
            remedy = ", or move it elsewhere." if inside else ", or remove the empty folder."
            problems.append((class_folder, f"{class_folder} {message}{remedy}"))


def _with_val(root: Path, paths: PathArray, labels: pd.DataFrame, problems: Remarks) -> pd.Series:
    """The split of each image, with about a fifth of each class in "val": at least one, never all.

    A hash of each path decides, so that an image stays where it is when others are added. Only in
    a class so small that no hash is low enough, the lowest is taken, and may change.
    """
    digests = (sha256(path.encode("utf-8", "surrogateescape")).digest() for path in paths)
    hashes = pd.Series(np.fromiter((int.from_bytes(d[:4]) for d in digests), float, len(paths)))
    of_class = hashes.groupby(labels["class_name"], observed=True)
    lowest, highest = of_class.transform("min"), of_class.transform("max")
    alone = labels.loc[lowest == highest, "class_name"].unique()
    if alone.size:
        message = (
            f"Class {alone[0]} has a single image: one is needed for training and one for "
            "validation. Add images, or move its folder elsewhere."
        )
        problems.append((root, message))
        return labels["split"]
    is_val = ((hashes < _VAL_SHARE * 2**32) | (hashes == lowest)) & (hashes < highest)
    return labels["split"].mask(is_val, "val")
