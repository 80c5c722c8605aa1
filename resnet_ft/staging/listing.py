"""Which images a slow folder holds: all folders of a level are listed at once, then all files."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from resnet_ft.data.folders import is_hidden
from resnet_ft.data.images import IMAGE_EXTENSIONS
from resnet_ft.patience import Patience, in_parallel, passes
from resnet_ft.progress import progress_bar
from resnet_ft.staging.manifest import Stamp


@dataclass
class Listing:
    """The folders and images below a folder, by their paths in it, and what could not be read."""

    folders: list[Path] = field(default_factory=list)
    images: dict[Path, Stamp] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)  # a folder or an image -> the reason


def list_images(source: Path, *, workers: int, patience: Patience) -> Listing:
    """List what `walk_images` walks, with many threads and second tries; raises nothing."""
    listing, found = Listing(), []
    level, entered = [source], set()
    while level:
        scanned = dict(in_parallel(lambda folder: _scan(folder, patience), level, workers))
        below = []
        for folder in sorted(scanned):
            relative, result = folder.relative_to(source), scanned[folder]
            if isinstance(result, str):
                listing.failed[relative] = result
            elif result.real not in entered:
                entered.add(result.real)
                listing.folders.append(relative)
                found += result.images
                below += result.folders
        level = below
    stamps = in_parallel(lambda image: _stamp(image, patience), found, workers)
    for image, stamp in progress_bar(stamps, f"Listing {source.name}", len(found)):
        known = listing.failed if isinstance(stamp, str) else listing.images
        known[Path(image.path).relative_to(source)] = stamp
    return listing


@dataclass
class _Folder:
    real: str
    folders: list[Path]
    images: list[os.DirEntry]


def _scan(folder: Path, patience: Patience) -> _Folder | str:
    """What lies in a folder, or why that cannot be known."""

    def scan() -> _Folder:
        scanned = _Folder(os.path.realpath(folder), [], [])
        with os.scandir(folder) as entries:
            for entry in entries:
                is_image = os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS
                if is_hidden(entry.name):
                    continue
                if _is_folder(entry, unless_dangling=is_image):
                    scanned.folders.append(folder / entry.name)
                elif is_image:
                    scanned.images.append(entry)
        return scanned

    try:
        return patience(scan)
    except OSError as error:
        return in_words(error)


def _is_folder(entry: os.DirEntry, *, unless_dangling: bool) -> bool:
    """Whether an entry is a folder, or a link to nothing, which may be one again in a moment."""
    try:
        dangling = entry.is_symlink() and not os.path.exists(entry.path)
        return entry.is_dir() or (dangling and not unless_dangling)
    except OSError as error:
        if passes(error):
            raise
        return False  # a link that leads to itself


def _stamp(image: os.DirEntry, patience: Patience) -> Stamp | str:
    try:
        status = patience(image.stat)
    except OSError as error:
        return in_words(error)
    if not stat.S_ISREG(status.st_mode):
        return "it is not a file"  # opening a pipe would wait for ever
    return Stamp(status.st_size, status.st_mtime_ns)


def in_words(error: OSError) -> str:
    """The reason in a few words, for a table."""
    if isinstance(error, FileNotFoundError):
        return "it was listed, but is not there"
    return error.strerror or str(error)
