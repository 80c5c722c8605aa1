"""How a data folder is laid out: its splits, its classes, its images, and what is wrong with that.

Nothing is refused here: `index_dataset` refuses what has problems, `audit_dataset` reports them.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from resnet_ft.data.folders import subfolders, walk_names
from resnet_ft.data.paths import PathArray
from resnet_ft.data.splitting import set_aside
from resnet_ft.data.table import ImageTable
from resnet_ft.errors import DatasetError

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
