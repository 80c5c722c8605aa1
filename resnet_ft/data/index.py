"""Which images, classes and splits a data folder holds."""

import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from resnet_ft.data.folders import find_images, subfolders
from resnet_ft.data.splitting import set_aside
from resnet_ft.errors import DatasetError
from resnet_ft.files import fingerprint

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


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
        """The index without these files, as `verify_images` lists them."""
        out = {os.path.relpath(path, self.root).replace(os.sep, "/") for path in paths}
        kept = self.table[~self.table["path"].isin(out)]
        return replace(self, table=kept.reset_index(drop=True))

    def counts(self) -> pd.DataFrame:
        """Images by class (rows) and split (columns)."""
        counts = pd.crosstab(self.table["class_name"], self.table["split"])
        splits = [name for name in ("train", "val", "test") if name in counts]
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
    root = _unwrap(Path(data_dir))
    folders = _split_folders(root) or {"train": root}
    if "train" not in folders:
        found = ", ".join(str(folder) for folder in folders.values())
        raise DatasetError(
            f"{root} has no Train folder beside {found}. Name the training one Train."
        )
    if "val" not in folders and "test" in folders:
        folders["val"] = folders.pop("test")
    rows = [row for split, folder in folders.items() for row in _rows(root, folder, split)]
    table = pd.DataFrame(rows, columns=["path", "split", "class_name"])
    if "val" not in folders:
        table = set_aside(table)
    classes = sorted(table.loc[table["split"] == "train", "class_name"].unique())
    _check(root, classes, table)
    return DatasetIndex(root, classes, table)


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


def _split_folders(root: Path) -> dict[str, Path]:
    folders = {}
    for path in subfolders(root):
        split = _SPLIT_NAMES.get(path.name.lower())
        if split in folders:
            raise DatasetError(
                f"{folders[split]} and {path} are both {split}. Merge or rename one."
            )
        if split:
            folders[split] = path
    return folders


def _rows(root: Path, folder: Path, split: str) -> Iterator[tuple[str, str, str]]:
    class_folders = subfolders(folder)
    if not class_folders:
        raise DatasetError(
            f"{folder} has no class folders. Put the images of each class into a folder of its "
            "own, named after the class."
        )
    for class_folder in class_folders:
        # macOS writes accents as characters of their own: the same name in two spellings.
        class_name = unicodedata.normalize("NFC", class_folder.name)
        images = list(find_images(class_folder))
        if not images:
            raise DatasetError(f"{class_folder} holds no images. Add some, or remove the folder.")
        for image in images:
            yield image.relative_to(root).as_posix(), split, class_name


def _check(root: Path, classes: list[str], table: pd.DataFrame) -> None:
    if len(classes) < 2:
        raise DatasetError(
            f"{root} has a single class ({classes[0]}). A classifier needs two or more."
        )
    for split, rows in table.groupby("split"):
        unknown = sorted(set(rows["class_name"]) - set(classes))
        if unknown:
            raise DatasetError(
                f"{root}: {split} has classes that Train lacks: {', '.join(unknown)}. "
                "Add them to Train, or rename the folders so that both agree."
            )
