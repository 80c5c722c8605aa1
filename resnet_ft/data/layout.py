"""What a tree of folders is: its splits, its classes, what wraps them, what lies beside them."""

import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
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
_OF_DRIVE = re.compile(r".*-\d{8}T\d{6}Z-(\d+-)?\d{3}")  # Drive sends a folder as several .zip
_PART = re.compile(
    rf"(.*[\W_])?(fold|part|batch|chunk|split)[\W_]*\d+|{_OF_DRIVE.pattern}", re.IGNORECASE
)
_LABELS = (".txt", ".csv", ".tsv", ".json", ".xml", ".xlsx", ".mat")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".rar", ".7z")


@dataclass(frozen=True)
class Layout:
    """What `find_layout` found: below `root`, the class folders of each split.

    `notes` say what was taken or left out where that is not the plain case, and why; `problems` why
    the tree cannot be used, and what to do.
    """

    root: Path
    splits: list[tuple[str, list[Path]]]
    notes: Remarks
    problems: Remarks


def find_layout(data_dir: Path) -> Layout:
    """Decide by their names and places what the folders below `data_dir` are.

    Raises DatasetError for a folder that cannot be listed.
    """
    notes: Remarks = []
    problems: Remarks = []
    passed = [data_dir]  # the folders on the way to those of the classes
    root = _unwrapped(data_dir, passed, notes, problems)
    found = _split_folders(root, notes, problems)
    parts = []
    for folder, split in (found or {root: "train"}).items():
        inner = _unwrapped_split(split, folder, passed) if found else root
        parts.append((split, folder, inner, _class_folders(inner, notes)))

    splits = []
    known = {like(path.name) for split, *_, paths in parts if split == "train" for path in paths}
    for split, folder, inner, classes in parts:
        if split == "test" and known.isdisjoint(like(path.name) for path in classes):
            seen = f"its folders {listed(classes)} are no classes of Train"
            if not classes:
                seen = "it has no class folders" if holds_images(inner) else "it holds no images"
            notes.append(
                (folder, f"{folder} is not used, since {seen}. Notebook 5 predicts such a folder.")
            )
            continue
        splits.append((split, classes))
        message = _doubt(inner, classes, notes) if classes else _without_classes(inner, passed)
        if message:
            problems.append((inner, message))
    if "val" not in dict(splits):
        splits = [("val" if split == "test" else split, classes) for split, classes in splits]
    flat = [inner for *_, inner, classes in parts if not classes]
    for folder in dict.fromkeys(passed):
        if folder not in flat:
            _note_files_beside(folder, notes)
        if _OF_DRIVE.match(os.path.basename(os.path.abspath(folder))):
            message = (
                f"{folder} is one part of what Google Drive sent. If there are others (-002, ...), "
                "their images are missing: unpack all parts into one folder."
            )
            notes.append((folder, message))
    return Layout(root, splits, notes, problems)


def like(name: str) -> str:
    """A name without what people write differently: case, spaces, hyphens, forms of Unicode."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold()) or name


def listed(things: Iterable[str | Path], most: int = 5) -> str:
    """The names of some files or folders, the first of them where there are many."""
    names = [thing.name if isinstance(thing, Path) else thing for thing in things]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _words(name: str) -> list[str]:
    words: list[str] = []
    for word in map(str.lower, _WORD.findall(name)):
        glued = _GLUED.fullmatch(word)
        words += glued.groups() if glued else [word]
    return words


def _split_of(name: str) -> tuple[str, tuple[str, ...]]:
    """The split that a name says ("" for none or several), and its other words with a meaning."""
    words = _words(name)
    splits = [_SPLIT_OF[word] for word in words if word in _SPLIT_OF]
    rest = tuple(word for word in words if word not in _SPLIT_OF and word not in _NO_MEANING)
    return (splits[0] if len(splits) == 1 else ""), rest


def says_nothing(name: str) -> bool:
    """Whether a folder's name is of images in general: images, photos, raw_data ..."""
    return {*(words := _words(name))} <= _NO_MEANING and bool(words)


def _is_beside(folder: Path) -> bool:
    return not _BESIDE.isdisjoint(_words(folder.name))


def _images_folder(folders: list[Path]) -> Path | None:
    """The folder called images, photos, ... that has only annotations, masks, ... beside it."""
    plain = [path for path in folders if says_nothing(path.name)]
    others = [path for path in folders if path not in plain]
    if len(plain) == 1 and all(_is_beside(path) or not any(find_images(path)) for path in others):
        return plain[0]
    return None


def _unwrapped(root: Path, passed: list[Path], notes: Remarks, problems: Remarks) -> Path:
    """The folder that holds splits or classes: an archive often has others around it."""
    while inside := subfolders(root):
        inner = _images_folder(inside)
        if len(inside) > 1 and inner:
            others = listed(path for path in inside if path != inner)
            notes.append(
                (root, f"{inner} is taken as the images; beside it, {others} is not used.")
            )
        elif len(inside) == 1 and _split_of(inside[0].name) not in _BARE and subfolders(inside[0]):
            inner, deeper = inside[0], [path.name for path in subfolders(inside[0])]
            if all(_DATE.fullmatch(name) or _PART.fullmatch(name) for name in deeper):
                message = (
                    f"{root} has a single class ({inner.name}) if {listed(deeper)} in it are its "
                    "dates or parts. Put the folders of other classes beside it; if they are the "
                    "classes, give them other names, such as wine_2019."
                )
                problems.append((inner, message))
                break
        else:
            break
        root = inner
        passed.append(root)
    return root


_BARE = [(split, ()) for split in ("train", "val", "test")]


def _split_folders(root: Path, notes: Remarks, problems: Remarks) -> dict[Path, str]:
    """The folders that are splits, which share all other words: seg_train, seg_test."""
    folders = subfolders(root)
    groups: dict[tuple[str, ...], dict[Path, str]] = {}  # by the other words
    for path in folders:
        split, rest = _split_of(path.name)
        if split and not _is_beside(path):
            groups.setdefault(rest, {})[path] = split
    shared = [group for rest, group in groups.items() if not rest or len({*group.values()}) > 1]
    every = {path: split for group in groups.values() for path, split in group.items()}
    is_mixed = len({*every.values()}) > 1 and 2 * len(every) > len(folders)
    if len(shared) > 1 or (is_mixed and not shared):
        message = (
            f"{listed(every)} in {root} look like split and class in one name. Sort them as "
            "Train/<class>, Val/<class>."
        )
        problems.append((root, message))
    if not shared:
        return {}
    found, splits = shared[0], [*shared[0].values()]
    names = listed(found)
    beside = [path for path in folders if path not in found and any(find_images(path))]
    others = [path for path in beside if not _is_beside(path)]
    if others and len({*splits}) == 1:
        if all(map(holds_images, [*found, *others])):
            message = f"{names} is taken as a class: like {listed(others)}, it holds images itself."
            notes.append((root, message))
            return {}
        message = (
            f"{root}: is {names} a split or a class? {listed(others)} beside it hold images too. "
            "If it is a split, move them elsewhere, and call the splits Train and Val; if it is a "
            "class, move the folders of all classes into one called Train."
        )
        problems.append((root, message))
    notes += [(path, f"{path} is not used: it lies beside {names}.") for path in beside]
    if any(path.name.lower() not in _USUAL for path in found):
        read = ", ".join(f"{path.name} as {split}" for path, split in found.items())
        notes.append((root, f"Folders in {root} are read as splits by their names: {read}."))
    for split in {*splits}:
        same = [path for path in found if found[path] == split]
        if len(same) > 1:
            message = f"{listed(map(str, same))} are both {split}. Merge or rename one."
            problems.append((same[1], message))
    if "train" not in splits:
        message = f"{root} has no Train folder beside {names}. Name the training one Train."
        problems.append((root, message))
    return found


def _unwrapped_split(split: str, folder: Path, passed: list[Path]) -> Path:
    """The folder that holds the classes of a split: train/train, train/images, ..."""
    passed.append(folder)
    while not holds_images(folder):
        inside = subfolders(folder)
        inner = _images_folder(inside)
        if len(inside) == 1 and _split_of(inside[0].name)[0] == split:
            inner = inside[0]
        if inner is None:
            break
        folder = inner
        passed.append(folder)
    return folder


def _class_folders(folder: Path, notes: Remarks) -> list[Path]:
    """The folders in it, without those that hold no image and are none of a class by their name."""
    classes = subfolders(folder)
    others = [path for path in classes if _is_beside(path) and not any(find_images(path))]
    if others:
        notes.append((others[0], f"{listed(map(str, others))} holds no images and is not used."))
    return [path for path in classes if path not in others]


def _without_classes(folder: Path, passed: list[Path]) -> str:
    """Why the folder of a split cannot be used, and where the labels of its images may stand."""
    message = f"{folder} has no class folders. Make one for each class"
    if not holds_images(folder):
        return f"{message}."
    hints: set[str] = set()
    for place in passed:
        hints.update(path.name for path in subfolders(place) if _is_beside(path))
        hints.update(name for name in next(walk_folders(place))[2] if name.endswith(_LABELS))
    hint = f" (their labels may stand in {listed(sorted(hints))})" if hints else ""
    return f"{message} in it, and move its images into them{hint}."


def _doubt(folder: Path, classes: list[Path], notes: Remarks) -> str:
    """Why these folders may not be the classes; "" where there is no doubt."""
    names = {path.name for path in classes}
    inside = {path: subfolders(path) for path in classes if not holds_images(path)}
    for path, deeper in {folder: classes, **inside}.items():
        splits = [one for one in deeper if _split_of(one.name) in _BARE]
        if len(dict(_split_of(one.name) for one in splits)) > 1:
            return (
                f"{path} holds splits ({listed(splits)}). If it holds the data set, give it as "
                f"data_dir; if it is a class, sort them as Train/{path.name}, Val/{path.name}."
            )
        again = sorted((names - {path.name}) & {one.name for one in deeper})
        if again and path != folder:
            return (
                f"{path} holds {listed(again)}, which lie beside it as well: which are the classes?"
                f" Move {path.name} elsewhere, or its images into the folders of their classes."
            )
    many = len(classes) > 1
    dates = many and all(map(_DATE.fullmatch, names))
    parts = many and all(_PART.fullmatch(name) for name in names)
    contents = {frozenset(one.name for one in inside.get(path, ())) for path in classes}
    is_repeated = many and len(contents) == 1 and len(min(contents)) > 1
    is_numbered = len({re.sub(r"\d+", "", name) for name in names}) == 1
    if parts or (is_repeated and is_numbered) or (dates and len(inside) == len(classes)):
        holding = f", each with {listed(sorted(min(contents)))}" if is_repeated else ""
        return (
            f"{listed(classes)} in {folder} look like parts of one data set, not like classes"
            f"{holding}. Make one folder for each class, in Train and Val; if they are classes, "
            "give them other names."
        )
    if dates:
        notes.append(
            (classes[0], f"{listed(classes)} in {folder} look like dates: taken as classes.")
        )
    return ""


def _note_files_beside(folder: Path, notes: Remarks) -> None:
    """Images and archives beside the folders that are used."""
    _, images, others = next(walk_folders(folder))
    if images:
        message = f"{len(images):,} images in {folder} lie in no class folder and are not used"
        notes.append((folder / images[0], f"{message}: {listed(images)}."))
    archives = [name for name in others if name.lower().endswith(_ARCHIVES)]
    if archives:
        message = f"{listed(archives)} in {folder} is not unpacked, so it is not used."
        notes.append((folder / archives[0], message))
