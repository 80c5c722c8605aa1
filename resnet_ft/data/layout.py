"""What a tree of folders is: its splits, its classes, what wraps them, what lies beside them."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from resnet_ft.data.folders import find_images, holds_images, subfolders, walk_folders

Remarks = list[tuple[Path, str]]  # files or folders, and what there is to say about each

_USUAL = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_USUAL |= {split: split for split in ("train", "val", "test")}
_SPLIT_OF = _USUAL | {"dev": "val", "eval": "test", "evaluation": "test"}
_NO_MEANING = frozenset(
    {"set", "sets", "data", "dataset", "datasets", "folder", "folders", "file", "files", "raw"}
    | {"image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "pic", "pics"}
)
_BESIDE = frozenset(  # labels in another form, and images without labels
    {"annotation", "annotations", "mask", "masks", "label", "labels", "bbox", "bboxes", "trimaps"}
    | {"segmentation", "segmentations", "groundtruth", "gt", "unlabeled", "unlabelled"}
    | {"pred", "predict", "prediction", "predictions", "submission"}
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+")  # "seg_TrainSet2": seg, Train, Set
_GLUED = re.compile(f"({'|'.join(_SPLIT_OF)})({'|'.join(_NO_MEANING)})")  # "trainset"
_DATE = re.compile(r"(19|20)\d\d([-_. ]?\d\d){0,2}")
_OF_DRIVE = re.compile(r".+-\d{8}T\d{6}Z-(\d+-)?\d{3}.*")  # Drive sends a folder as several .zip
_PART = re.compile(r"(.*[\W_])?(fold|part|batch|chunk|split)[\W_]*\d+", re.IGNORECASE)
_LABELS = (".txt", ".csv", ".tsv", ".json", ".xml", ".xlsx", ".mat")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".rar", ".7z")


class Layout:
    """What the folders below `data_dir` are, decided by their names and places.

    `root` is where the splits or classes lie, and `splits` has the class folders of each split.
    `notes` say what was taken or left out where that is not the plain case, `problems` why the tree
    cannot be used and what to do. Raises DatasetError for a folder that cannot be listed.
    """

    def __init__(self, data_dir: Path):
        self.notes: Remarks = []
        self.problems: Remarks = []
        self._passed: list[Path] = []  # the folders on the way to those of the classes
        self.root = self._unwrapped(data_dir)
        splits = self._split_folders()
        places = {folder: self._unwrapped(folder, split) for folder, split in splits.items()}
        if not splits:
            splits, places = {self.root: "train"}, {self.root: self.root}
        classes = {folder: subfolders(place) for folder, place in places.items()}
        known = {like(path.name) for of in splits if splits[of] == "train" for path in classes[of]}
        self.splits: list[tuple[str, list[Path]]] = []
        for folder, split in splits.items():
            if split == "test" and known.isdisjoint(like(path.name) for path in classes[folder]):
                but = f", but {listed(classes[folder])}" if classes[folder] else ""
                what = f"{folder} has no folder of a class of Train{but}, so it is not used"
                self._note(folder, f"{what}. Notebook 5 predicts images without labels.")
            else:
                self.splits.append((split, classes[folder]))
                self._check_classes(places[folder], classes[folder])
        if "val" not in dict(self.splits):
            self.splits = [(split.replace("test", "val"), paths) for split, paths in self.splits]
        flat = [place for folder, place in places.items() if not classes[folder]]
        for folder in dict.fromkeys(self._passed):
            self._note_files(folder, is_flat=folder in flat)

    def _note(self, path: Path, message: str) -> None:
        self.notes.append((path, message))

    def _refuse(self, path: Path, message: str) -> None:
        self.problems.append((path, message))

    def _unwrapped(self, folder: Path, split: str = "") -> Path:
        """The folder within those that only wrap it: of an archive, images/, train/train/."""
        self._passed.append(folder)
        inside = [] if split and holds_images(folder) else subfolders(folder)
        general = [path for path in inside if says_nothing(path.name)]
        kept = general or [path for path in inside if not _is_beside(path.name)]
        others = [path for path in inside if path not in kept]
        if len(kept) != 1 or not all(
            (general and _is_beside(path.name)) or not any(find_images(path)) for path in others
        ):
            return folder
        inner, named, deeper = kept[0], split_of(kept[0]), subfolders(kept[0])
        if not general and (named[0] != split if split else named in _BARE or not deeper):
            return folder
        if not general and deeper and all(_is_portion(path.name) for path in deeper):
            self._refuse(
                inner,
                f"{folder} has a single class ({inner.name}) if {listed(deeper)} in it are its "
                "dates or parts. Put the folders of other classes beside it; if they are the "
                "classes, give them other names, such as wine_2019.",
            )
            return folder
        for path in others:
            self._note(path, f"{path} is not used, since it lies beside {inner.name}.")
        return self._unwrapped(inner, split)

    def _split_folders(self) -> dict[Path, str]:
        """The folders that are splits, which share all other words: seg_train, seg_test."""
        root, folders = self.root, subfolders(self.root)
        groups: dict[tuple[str, ...], dict[Path, str]] = {}  # by the other words
        for path in folders:
            split, rest = split_of(path)
            if split and not _is_beside(path.name):
                groups.setdefault(rest, {})[path] = split
        shared = [group for rest, group in groups.items() if not rest or len({*group.values()}) > 1]
        every = {path: split for group in groups.values() for path, split in group.items()}
        is_mixed = len({*every.values()}) > 1 and 2 * len(every) > len(folders)
        if len(shared) > 1 or (is_mixed and not shared):
            self._refuse(
                root,
                f"{listed(every)} in {root} look like split and class in one name. Sort them as "
                "Train/<class>, Val/<class>.",
            )
        if not shared:
            return {}
        found, splits = shared[0], [*shared[0].values()]
        beside = [path for path in folders if path not in found and any(find_images(path))]
        others = [path for path in beside if not _is_beside(path.name)]
        if others and len({*splits}) == 1:
            if all(map(holds_images, [*found, *others])):
                what = f"{listed(found)} is a class and no split: it holds images itself, like"
                self._note(root, f"{what} {listed(others)} beside it.")
                return {}
            self._refuse(
                root,
                f"Is {listed(found)} in {root} a split, or a class like {listed(others)} beside it?"
                " Move the others elsewhere, or all class folders into one called Train.",
            )
        for path in beside:
            self._note(path, f"{path} is not used, since it lies beside {listed(found)}.")
        if any(path.name.lower() not in _USUAL for path in found):
            read = ", ".join(f"{path.name} as {split}" for path, split in found.items())
            self._note(root, f"Folders in {root} are splits by their names: {read}.")
        for split in dict.fromkeys(splits):
            same = [str(path) for path in found if found[path] == split]
            if len(same) > 1:
                self._refuse(root, f"{listed(same)} are both {split}. Merge or rename one.")
        if "train" not in splits:
            what = f"{root} has no Train folder beside {listed(found)}"
            self._refuse(root, f"{what}. Name the training one Train.")
        return found

    def _check_classes(self, folder: Path, classes: list[Path]) -> None:
        """Refuse class folders that may be something else, and a folder without any."""
        if not classes:
            hint = ""
            if holds_images(folder):
                entries = {name for place in self._passed for name in os.listdir(place)}
                labels = [name for name in entries if name.endswith(_LABELS) or _is_beside(name)]
                hint = " in it, and move its images into them"
                hint += f" (their labels may stand in {listed(sorted(labels))})" if labels else ""
            self._refuse(folder, f"{folder} has no class folders. Make one for each class{hint}.")
        names = {path.name for path in classes}
        inside = {path: subfolders(path) for path in classes if not holds_images(path)}
        for path, deeper in {folder: classes, **inside}.items():
            splits = dict.fromkeys(split for split in map(split_of, deeper) if split in _BARE)
            again = sorted((names - {path.name}) & {one.name for one in deeper})
            if len(splits) > 1:
                sorting = f"sort them as Train/{path.name}, Val/{path.name}"
                self._refuse(path, f"{path} holds splits: give it as data_dir, or {sorting}.")
            elif again and path != folder:
                self._refuse(
                    path,
                    f"{path} holds {listed(again)}, which lie beside it as well: which are the "
                    f"classes? Move {path.name} elsewhere, or its images into their classes.",
                )
        are_dates = not inside and all(map(_DATE.fullmatch, names))  # a vintage may be a class
        if len(names) > 1 and all(map(_is_portion, names)) and not are_dates:
            self._refuse(
                folder,
                f"{listed(classes)} in {folder} look like parts of one data set, not like classes. "
                "Make a folder for each class, in Train and Val; if they are classes, give them "
                "other names, such as wine_2019.",
            )

    def _note_files(self, folder: Path, *, is_flat: bool) -> None:
        """Images and archives beside the folders that are used."""
        _, images, others = next(walk_folders(folder))
        if images and not is_flat:
            what = f"Images in {folder} that lie in no class folder are not used ({len(images):,})"
            self._note(folder / images[0], f"{what}: {listed(images)}.")
        for name in others:
            if name.lower().endswith(_ARCHIVES):
                self._note(folder / name, f"{folder / name} is not unpacked, so it is not used.")
        if _OF_DRIVE.match(os.path.basename(os.path.abspath(folder))):
            what = (
                f"{folder} is one part of what Google Drive sent. If there are others (-002, ...)"
            )
            self._note(folder, f"{what}, unpack all into one folder: their images are missing.")


def looks_like_dataset(folder: Path) -> bool:
    """Whether a folder holds splits, or two folders of images; only its first levels are read."""
    inside = subfolders(folder)
    return any(split_of(path) in _BARE for path in inside) or sum(map(holds_images, inside)) > 1


def like(name: str) -> str:
    """A name without what people write differently: case, spaces, hyphens, forms of Unicode."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold()) or name


def listed(things: Iterable[str | Path], most: int = 5) -> str:
    """The names of some files or folders, the first of them where there are many."""
    names = [thing.name if isinstance(thing, Path) else thing for thing in things]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def says_nothing(name: str) -> bool:
    """Whether a folder's name is of images in general: images, photos, raw_data ..."""
    return {*(words := _words(name))} <= _NO_MEANING and bool(words)


def _words(name: str) -> list[str]:
    words: list[str] = []
    for word in map(str.lower, _WORD.findall(name)):
        glued = _GLUED.fullmatch(word)
        words += glued.groups() if glued else [word]
    return words


def split_of(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The split that its name says ("" for none or several), and its other words with a meaning."""
    words = _words(folder.name)
    splits = [_SPLIT_OF[word] for word in words if word in _SPLIT_OF]
    rest = tuple(word for word in words if word not in _SPLIT_OF and word not in _NO_MEANING)
    return (splits[0] if len(splits) == 1 else ""), rest


_BARE = [(split, ()) for split in ("train", "val", "test")]  # of names that say nothing else


def _is_beside(name: str) -> bool:
    return not _BESIDE.isdisjoint(_words(name))


def _is_portion(name: str) -> bool:
    """Whether a name is a date or the number of a part, which no photograph shows."""
    return any(pattern.fullmatch(name) for pattern in (_DATE, _PART, _OF_DRIVE))
