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
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from resnet_ft.data.folders import find_images, is_hidden, is_image, walk_images
from resnet_ft.data.layout import listed
from resnet_ft.errors import DatasetError
from resnet_ft.notebook import progress_bar
from resnet_ft.reading import as_text
from resnet_ft.remote import DriveRetry, in_parallel, is_transient
from resnet_ft.staging.shrink import shrunk

_MANIFEST = ".manifest.jsonl"
_NOT_COPIED = ".not_copied.csv"
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_Result = TypeVar("_Result")


class _Stamp(NamedTuple):
    """The state of a file at the source, by which a change is noticed."""

    size: int
    mtime_ns: int


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
    folders, images, failed = _list_images(source, workers, retry)

    def copy(path: Path) -> tuple[_Stamp, int] | str:
        return _attempt(retry, _copy, source / path, work, target / path, max_side)

    for folder in [Path(), *folders]:
        (target / folder).mkdir(parents=True, exist_ok=True)
    with (target / _MANIFEST).open("a+b", buffering=0) as manifest:
        known = _read_manifest(manifest)

        def is_copied(path: Path) -> bool:
            with suppress(OSError):
                return known.get(str(path)) == [*images[path], os.path.getsize(target / path)]
            return False

        missing = {path: stamp for path, stamp in images.items() if not is_copied(path)}
        size, free = sum(stamp.size for stamp in missing.values()), shutil.disk_usage(target).free
        bar = progress_bar(None, "Copying", size, unit="B")
        try:
            if size > free and not max_side:
                reason = f"it needs {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} are free"
                raise OSError(errno.ENOSPC, reason)
            with bar:
                for count, (path, copied) in enumerate(in_parallel(copy, missing, workers), 1):
                    if isinstance(copied, str):
                        failed[path] = copied
                    else:
                        stamp, copied_size = copied
                        line = json.dumps([str(path), *stamp, copied_size])
                        manifest.write(line.encode() + b"\n")
                    bar.set_postfix_str(f"{count:,} of {len(missing):,} files", refresh=False)
                    bar.update(missing[path].size)
        except OSError as error:
            if error.errno not in _FULL_DISK:
                raise
            raise DatasetError(
                f"The disk of {target} is too small for {source}: {error.strerror}. Make room "
                "there, give another destination, or let max_side= shrink the images; what is "
                "already copied will not be copied again."
            ) from error

    listed = {*folders, *images}

    def is_gone(path: Path) -> bool:  # moved or deleted: it would be a wrong label, or a leak
        relative = path.relative_to(target)
        return relative not in listed and failed.keys().isdisjoint((relative, *relative.parents))

    for path in filter(is_gone, find_images(target)):
        path.unlink()
    for folder in filter(is_gone, reversed([folder for folder, _ in walk_images(target)])):
        with suppress(OSError):  # it holds something that is not ours
            folder.rmdir()
    _report(source, target, failed)


def _list_images(
    source: Path, workers: int, retry: DriveRetry
) -> tuple[list[Path], dict[Path, _Stamp], dict[Path, str]]:
    """List what `walk_images` walks, with many threads and with retries: paths in `source`.

    Returns the folders, the images, and the folders and images that cannot be read with the reason.
    """
    folders: list[Path] = []
    images: dict[Path, _Stamp] = {}
    failed: dict[Path, str] = {}
    found: list[os.DirEntry[str]] = []
    others: list[str] = []
    entered: set[str] = set()
    level = [source]
    while level:
        scanned = dict(in_parallel(lambda folder: _attempt(retry, _scan, folder), level, workers))
        level = []
        for folder, result in sorted(scanned.items()):
            if isinstance(result, str):
                failed[folder.relative_to(source)] = result
                continue
            real, subfolders, entries, names = result
            if real not in entered:
                entered.add(real)
                folders.append(folder.relative_to(source))
                found += entries
                others += names
                level += subfolders
    if others:
        message = f"Files of {source} that are no images are not copied ({len(others):,})"
        warnings.warn(f"{message}: {listed(sorted(others))}.", stacklevel=4)
    stamps = in_parallel(lambda image: _attempt(retry, _stamp, image), found, workers)
    for image, stamp in progress_bar(stamps, f"Listing {source.name}", len(found)):
        known = failed if isinstance(stamp, str) else images
        known[Path(image.path).relative_to(source)] = stamp
    return folders, images, failed


def _attempt(
    retry: DriveRetry, function: Callable[..., _Result], *arguments: object
) -> _Result | str:
    """The function's result or, where it fails for good, the reason in a few words."""
    try:
        return retry(function, *arguments)
    except FileNotFoundError:
        return "it was listed, but is not there"
    except OSError as error:
        if error.errno in _FULL_DISK:  # then no other file can be written either
            raise
        return error.strerror or str(error)


def _scan(folder: Path) -> tuple[str, list[Path], list[os.DirEntry[str]], list[str]]:
    """Where a folder really is, and the folders, images and names of other files in it."""
    folders, images, others = list[Path](), list[os.DirEntry[str]](), list[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            try:
                is_folder = entry.is_dir()
                is_one = not is_folder and is_image(entry.path)
                if not is_folder and not is_one:  # a dangling link may lead to a folder again
                    is_folder = entry.is_symlink() and not os.path.exists(entry.path)
            except OSError as error:
                if is_transient(error):
                    raise
                is_folder, is_one = False, is_image(entry.path)  # a link that leads to itself
            if is_folder:
                folders.append(folder / entry.name)
            elif is_one:
                images.append(entry)
            else:
                others.append(entry.name)
    return os.path.realpath(folder), folders, images, others


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
    lines = file.read().split(b"\n")
    for line in lines:
        with suppress(ValueError, TypeError, RecursionError):
            name, *state = json.loads(line)
            copied[name] = state
    if lines[-1]:
        file.write(b"\n")
    return copied


def _copy(path: Path, work: Path, copied: Path, max_side: int | None) -> tuple[_Stamp, int]:
    """Copy a file; return the state of the source that was read, and the size of the copy."""
    temporary = work / str(threading.get_ident())
    with open(path, "rb") as file, open(temporary, "wb") as output:
        status = os.fstat(file.fileno())
        if max_side:
            content = file.read()
            output.write(shrunk(content, max_side) or content)
        else:
            shutil.copyfileobj(file, output, 1 << 20)
        read, size = file.tell(), output.tell()
    if read != status.st_size or os.path.getsize(temporary) != size:
        raise OSError(errno.EIO, f"only {read:,} of its {status.st_size:,} bytes could be read")
    os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(temporary, copied)
    return _Stamp(status.st_size, status.st_mtime_ns), size


def _report(source: Path, target: Path, failed: dict[Path, str]) -> None:
    """List what could not be copied and warn of it, or raise where that is everything."""
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
        csv.writer(file).writerows([("file", "reason"), *(map(as_text, row) for row in rows)])
    warnings.warn(
        f"{len(rows):,} files of {source} could not be copied: {named}{more}. The others are at "
        f"{target} and can be used; {table} lists all that failed. Run it again to copy only "
        "these; if they fail again, mount Drive again or replace them.",
        stacklevel=4,  # at the call of stage_dataset
    )
