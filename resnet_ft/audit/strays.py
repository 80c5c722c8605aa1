"""What lies in a data folder beside the images of its classes."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from resnet_ft.data.folders import is_hidden, walk_once
from resnet_ft.data.images import IMAGE_EXTENSIONS

_UNREAD_FORMATS = frozenset(
    {".svg", ".eps", ".psd", ".jp2", ".jxl", ".ico", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}  # cameras' raw formats
)


def find_strays(root: Path, images: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(path, issue) of every entry below `root` that is neither one of `images` nor a folder.

    Paths, also those of `images`, are relative to `root`. The issue is "junk" (hidden files and
    folders, leftovers of systems; a folder is told once), "outside of a class" (images),
    "unread format" (images of a kind that the library does not read) or "other file".
    """
    images = set(images)
    for parent, hidden_folders, names in walk_once(root):
        for name in sorted(hidden_folders + names):
            path = (parent / name).relative_to(root).as_posix()
            if path not in images:
                yield path, _kind(name)


def _kind(name: str) -> str:
    extension = os.path.splitext(name)[1].lower()
    if is_hidden(name):
        return "junk"
    if extension in IMAGE_EXTENSIONS:
        return "outside of a class"
    return "unread format" if extension in _UNREAD_FORMATS else "other file"
