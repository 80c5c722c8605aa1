"""How a data folder is laid out: its splits, its classes, its images, and what is wrong with that.

Nothing is refused here: `index_dataset` refuses what has problems, `audit_dataset` reports them.
"""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from resnet_ft.data.folders import find_images, subfolders
from resnet_ft.data.splitting import set_aside
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


@dataclass(frozen=True)
class Layout:
    """What `read_layout` found.

    `table` has a row an image: `path` (relative to `root`), and, as categories, `split` and
    `class_name`.
    """

    root: Path
    table: pd.DataFrame
    problems: list[_Problem]

    @property
    def classes(self) -> list[str]:
        """The class names of the training split, sorted."""
        return sorted(self.table.loc[self.table["split"] == "train", "class_name"].unique())


def read_layout(data_dir: str | Path) -> Layout:
    """Find the images below a folder, by split and class, and what stands in the way of training.

    What is understood is written at `index_dataset`. Raises DatasetError only for a folder that
    does not exist.
    """
    root = _unwrap(Path(data_dir))
    folders, problems = _split_folders(root)
    splits = {split for split, _ in folders}
    rows = []
    for split, folder in folders:
        problems += _read_split(root, folder, split, rows)
    table = pd.DataFrame(rows, columns=["path", "split", "class_name"], dtype=object)
    if splits == {"train"}:
        try:
            table = set_aside(table)
        except DatasetError as error:
            problems.append(_Problem(root, str(error)))
    problems += _disagreements(root, table)
    split = pd.Categorical(table["split"], SPLITS)
    table = table.assign(split=split, class_name=table["class_name"].astype("category"))
    return Layout(root, table, problems)


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


def _read_split(root: Path, folder: Path, split: str, rows: list[tuple]) -> list[_Problem]:
    """Add the images of one split to `rows`; returns the problems."""
    class_folders = subfolders(folder)
    if not class_folders:
        message = (
            f"{folder} has no class folders. Put the images of each class into a folder of its "
            "own, named after the class."
        )
        return [_Problem(folder, message)]
    problems = []
    for class_folder in class_folders:
        # macOS writes accents as characters of their own: the same name in two spellings.
        class_name = unicodedata.normalize("NFC", class_folder.name)
        images = [path.relative_to(root).as_posix() for path in find_images(class_folder)]
        rows += [(path, split, class_name) for path in images]
        if not images:
            message = f"{class_folder} holds no images. Add some, or remove the folder."
            problems.append(_Problem(class_folder, message))
    return problems


def _disagreements(root: Path, table: pd.DataFrame) -> list[_Problem]:
    problems = []
    classes = {split: set(rows) for split, rows in table.groupby("split")["class_name"]}
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
