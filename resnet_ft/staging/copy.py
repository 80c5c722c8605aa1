"""A folder of images on Drive, copied to local disk: in parallel, with retries, topped up later."""

import csv
import errno
import json
import os
import shutil
import stat
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from resnet_ft.data.folders import find_images, is_hidden, walk_images
from resnet_ft.data.images import IMAGE_EXTENSIONS
from resnet_ft.errors import DatasetError
from resnet_ft.notebook import progress_bar
from resnet_ft.remote import DriveRetry, in_parallel, is_transient, means_full_disk
from resnet_ft.staging.shrink import shrunk

_MANIFEST = ".manifest.jsonl"
_NOT_COPIED = ".not_copied.csv"
_Result = TypeVar("_Result")


def copy_folder(
    source: Path, target: Path, work: Path, *, workers: int, max_side: int | None = None
) -> None:
    """Make `target` hold the folders and images of `source`, and no other image.

    Files are written in the folder `work`, on the same disk, and renamed when they are complete.
    With `max_side`, larger images are shrunk on the way. What cannot be copied after several tries
    is named in a warning and listed in `.not_copied.csv` (columns file, reason) in `target`. Raises
    DatasetError where nothing could be copied, and as soon as the disk is full.
    """
    retry = DriveRetry()
    listing = _list_images(source, workers, retry)

    def copy(path: Path) -> tuple[_Stamp, int] | str:
        return _attempt(retry, _copy, source / path, work, target / path, max_side)

    for folder in [Path(), *listing.folders]:
        (target / folder).mkdir(parents=True, exist_ok=True)
    with (target / _MANIFEST).open("a+b", buffering=0) as manifest:
        known = _read_manifest(manifest)
        missing = {
            path: stamp
            for path, stamp in listing.images.items()
            if known.get(str(path)) != [*stamp, _size(target / path)]
        }
        size, free = sum(stamp.size for stamp in missing.values()), shutil.disk_usage(target).free
        if size > free and not max_side:
            reason = f"{source} needs {size / 1e9:,.1f} GB, {free / 1e9:,.1f} are free"
            raise _full_disk(target, reason)
        bar = progress_bar(None, "Copying", size, unit="B", unit_scale=True)
        try:
            with bar:
                for count, (path, copied) in enumerate(in_parallel(copy, missing, workers), 1):
                    if isinstance(copied, str):
                        listing.failed[path] = copied
                    else:
                        stamp, copied_size = copied
                        line = json.dumps([str(path), *stamp, copied_size])
                        manifest.write(line.encode() + b"\n")
                    bar.set_postfix_str(f"{count:,} of {len(missing):,} files", refresh=False)
                    bar.update(missing[path].size)
        except OSError as error:
            if means_full_disk(error):
                raise _full_disk(target, f"no space was left for all of {source}") from error
            raise
    _remove_unlisted(target, listing)
    _report(source, target, listing.failed)


def _full_disk(target: Path, reason: str) -> DatasetError:
    return DatasetError(
        f"The disk of {target} is too small: {reason}. Make room there, give another destination, "
        "or let max_side= shrink the images; what is copied already will not be copied again."
    )


class _Stamp(NamedTuple):
    """The state of a file at the source, by which a change is noticed."""

    size: int
    mtime_ns: int


@dataclass
class _Listing:
    """The folders and images below a folder, by their paths in it, and what could not be read."""

    folders: list[Path] = field(default_factory=list)
    images: dict[Path, _Stamp] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)  # a folder or an image -> the reason


def _list_images(source: Path, workers: int, retry: DriveRetry) -> _Listing:
    """List what `walk_images` walks, with many threads and with retries; raises nothing."""
    listing = _Listing()
    found: list[os.DirEntry[str]] = []
    entered: set[str] = set()
    level = [source]
    while level:
        scanned = dict(in_parallel(lambda folder: _attempt(retry, _scan, folder), level, workers))
        level = []
        for folder, result in sorted(scanned.items()):
            if isinstance(result, str):
                listing.failed[folder.relative_to(source)] = result
                continue
            real, folders, images = result
            if real not in entered:
                entered.add(real)
                listing.folders.append(folder.relative_to(source))
                found += images
                level += folders
    stamps = in_parallel(lambda image: _attempt(retry, _stamp, image), found, workers)
    for image, stamp in progress_bar(stamps, f"Listing {source.name}", len(found)):
        known = listing.failed if isinstance(stamp, str) else listing.images
        known[Path(image.path).relative_to(source)] = stamp
    return listing


def _attempt(
    retry: DriveRetry, function: Callable[..., _Result], *arguments: object
) -> _Result | str:
    """The function's result or, where it fails for good, the reason in a few words."""
    try:
        return retry(function, *arguments)
    except FileNotFoundError:
        return "it was listed, but is not there"
    except OSError as error:
        if means_full_disk(error):  # then no other file can be written either
            raise
        return error.strerror or str(error)


def _scan(folder: Path) -> tuple[str, list[Path], list[os.DirEntry[str]]]:
    """Where a folder really is, and the folders and images in it."""
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_image = os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS
            if is_hidden(entry.name):
                continue
            if _is_folder(entry, unless_dangling=is_image):
                folders.append(folder / entry.name)
            elif is_image:
                images.append(entry)
    return os.path.realpath(folder), folders, images


def _is_folder(entry: os.DirEntry[str], *, unless_dangling: bool) -> bool:
    """Whether an entry is a folder, or a dangling link, which may lead to one again in a moment."""
    try:
        dangling = entry.is_symlink() and not os.path.exists(entry.path)
        return entry.is_dir() or (dangling and not unless_dangling)
    except OSError as error:
        if is_transient(error):
            raise
        return False  # a link that leads to itself


def _stamp(image: os.DirEntry[str]) -> _Stamp:
    status = image.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise OSError(errno.EINVAL, "it is not a file")
    return _Stamp(status.st_size, status.st_mtime_ns)


def _read_manifest(file: IO[bytes]) -> dict[str, list[int]]:
    """What was copied: path in the folder -> size and mtime_ns at the source, size of the copy.

    There is a line for each file, appended at once: a kill loses none that is written. The last
    line of a path counts; the half line of a killed process is skipped.
    """
    copied = {}
    file.seek(0)
    content = file.read()
    for line in content.splitlines():
        with suppress(ValueError):
            name, *state = json.loads(line)
            copied[name] = state
    if content and not content.endswith(b"\n"):
        file.write(b"\n")
    return copied


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _copy(path: Path, work: Path, copied: Path, max_side: int | None) -> tuple[_Stamp, int]:
    """Copy a file; return the state of the source that was read, and the size of the copy."""
    temporary = work / str(threading.get_ident())
    with open(path, "rb") as file, open(temporary, "wb") as output:
        status = os.fstat(file.fileno())
        if max_side:
            content = file.read()
            read = len(content)
            output.write(shrunk(content, max_side) or content)
        else:
            shutil.copyfileobj(file, output, 1 << 20)
            read = output.tell()
        size = output.tell()
    if read != status.st_size or os.path.getsize(temporary) != size:
        raise OSError(errno.EIO, f"only {read:,} of its {status.st_size:,} bytes could be read")
    os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(temporary, copied)
    return _Stamp(status.st_size, status.st_mtime_ns), size


def _remove_unlisted(target: Path, listing: _Listing) -> None:
    """Remove what was moved or deleted at the source: it would be a wrong label, or a leak."""

    def is_gone(path: Path) -> bool:
        relative = path.relative_to(target)
        listed = relative in listing.images or relative in folders
        return not listed and listing.failed.keys().isdisjoint((relative, *relative.parents))

    folders = set(listing.folders)
    for path in filter(is_gone, find_images(target)):
        path.unlink()
    for folder in filter(is_gone, reversed([folder for folder, _ in walk_images(target)])):
        with suppress(OSError):  # it holds something that is not ours
            folder.rmdir()


def _report(source: Path, target: Path, failed: dict[Path, str]) -> None:
    table = target / _NOT_COPIED
    table.unlink(missing_ok=True)
    if not failed:
        return
    rows = sorted((str(path), reason) for path, reason in failed.items())
    named = ", ".join(f"{path} ({reason})" for path, reason in rows[:10])
    more = f" and {len(rows) - 10:,} more" if len(rows) > 10 else ""
    if not any(find_images(target)):
        shutil.rmtree(target)
        raise DatasetError(
            f"Nothing could be copied from {source}: {named}{more}. Mount Drive again (Runtime > "
            "Disconnect and delete runtime gives a fresh machine), and run it again."
        )
    with table.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("file", "reason"), *rows])
    warnings.warn(
        f"{len(rows):,} files of {source} could not be copied: {named}{more}. The others are at "
        f"{target} and can be used; {table} lists all that failed. Run it again to copy only "
        "these; if they fail again, mount Drive again or replace them.",
        stacklevel=5,  # at the call of stage_dataset
    )
