"""What a copied folder holds, and from which state of the source each file comes."""

import csv
import errno
import json
import os
import shutil
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from resnet_ft.data.folders import find_images, is_hidden, walk_images
from resnet_ft.data.images import IMAGE_EXTENSIONS
from resnet_ft.errors import DatasetError
from resnet_ft.notebook import progress_bar
from resnet_ft.remote import Patience, in_parallel, means_full_disk, passes
from resnet_ft.staging.shrink import shrunk


class Stamp(NamedTuple):
    """The state of a file at the source, by which a change is noticed."""

    size: int
    mtime_ns: int


class Manifest:
    """A line for each file that was copied, appended at once: a kill loses none that is written.

    A line holds the path in the folder, the source's `Stamp`, and the size of the copy. The last
    line of a path counts; the half a line of a killed process is passed over.
    """

    def __init__(self, path: Path):
        self._folder = path.parent
        self._copied: dict[str, list[int]] = {}
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        content = self._file.read()
        for line in content.splitlines():
            try:
                name, *state = json.loads(line)
            except ValueError:
                continue
            self._copied[name] = state
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def holds(self, path: Path, stamp: Stamp) -> bool:
        """Whether the copy of a file is there, whole, and of this state of the source."""
        *known, size = self._copied.get(str(path), [None])
        try:
            return known == list(stamp) and os.stat(self._folder / path).st_size == size
        except OSError:
            return False

    def add(self, path: Path, stamp: Stamp, copied_size: int) -> None:
        """Note that a copy has taken its place."""
        self._copied[str(path)] = [*stamp, copied_size]
        self._file.write(json.dumps([str(path), *stamp, copied_size]).encode() + b"\n")


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


MANIFEST = ".manifest.jsonl"
NOT_COPIED = ".not_copied.csv"
_Copied = tuple[Stamp, int]  # the state of the source that was read, and the size of the copy


def copy_folder(
    source: Path, target: Path, work: Path, *, workers: int, max_side: int | None = None
) -> None:
    """Make `target` hold the folders and images of `source`, and no image that it lacks.

    Files are written in the folder `work`, on the same disk, and renamed when they are whole. With
    `max_side`, larger images are shrunk on the way. What cannot be copied after several tries is
    named in a warning and listed in `.not_copied.csv` (columns file, reason) in `target`. Raises
    DatasetError where nothing could be copied, and as soon as the disk is full.
    """
    patience = Patience()
    listing = list_images(source, workers=workers, patience=patience)
    for folder in [Path(), *listing.folders]:
        (target / folder).mkdir(parents=True, exist_ok=True)
    with Manifest(target / MANIFEST) as manifest:
        images = listing.images.items()
        missing = {path: stamp for path, stamp in images if not manifest.holds(path, stamp)}
        if not max_side:
            _check_space(source, target, missing.values())

        def copy(path: Path) -> _Copied | str:
            arguments = (source / path, work, target / path, max_side)
            return _copy_or_reason(patience, *arguments)

        for path, copied in _with_progress(in_parallel(copy, missing, workers), missing):
            if isinstance(copied, str):
                listing.failed[path] = copied
            else:
                with _unless_full(target, path):
                    manifest.add(path, *copied)
    _remove_what_is_not_listed(target, listing)
    _report(source, target, listing.failed)


def _check_space(source: Path, target: Path, stamps: Iterable[Stamp]) -> None:
    size, free = sum(stamp.size for stamp in stamps), shutil.disk_usage(target).free
    if size > free:
        raise _full_disk(target, f"{source} needs {size / 1e9:,.1f} GB, {free / 1e9:,.1f} are free")


def _full_disk(target: Path, reason: str) -> DatasetError:
    return DatasetError(
        f"The disk of {target} is too small: {reason}. Make room there, give another destination, "
        "or let max_side= shrink the photographs; what is copied already will not be copied again."
    )


def _copy_or_reason(
    patience: Patience, path: Path, work: Path, copied: Path, max_side: int | None
) -> _Copied | str:
    try:
        with _unless_full(copied.parent, path):
            return patience(_copy, path, work, copied, max_side)
    except OSError as error:
        return in_words(error)


@contextmanager
def _unless_full(target: Path, path: Path) -> Iterator[None]:
    """Raise DatasetError where the disk of `target` has no space left for a file, or a line."""
    try:
        yield
    except OSError as error:
        if means_full_disk(error):
            raise _full_disk(target, f"no space was left for {path}") from error
        raise


def _copy(path: Path, work: Path, copied: Path, max_side: int | None) -> _Copied:
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
    return Stamp(status.st_size, status.st_mtime_ns), size


def _with_progress(
    copies: Iterator[tuple[Path, _Copied | str]], missing: dict[Path, Stamp]
) -> Iterator[tuple[Path, _Copied | str]]:
    """The same, with a bar of bytes that also counts files."""
    size = sum(stamp.size for stamp in missing.values())
    with progress_bar(None, "Copying", size, unit="B", unit_scale=True) as bar:
        for count, (path, copied) in enumerate(copies, 1):
            yield path, copied
            bar.set_postfix_str(f"{count:,} of {len(missing):,} files", refresh=False)
            bar.update(missing[path].size)


def _remove_what_is_not_listed(target: Path, listing: Listing) -> None:
    """What was moved or deleted at the source would be a wrong label, or a leak."""

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
    table = target / NOT_COPIED
    table.unlink(missing_ok=True)
    if not failed:
        return
    rows = sorted((str(path), reason) for path, reason in failed.items())
    named = ", ".join(f"{path} ({reason})" for path, reason in rows[:10])
    more = f" and {len(rows) - 10:,} more" if len(rows) > 10 else ""
    if not any(find_images(target)):
        shutil.rmtree(target)
        raise DatasetError(
            f"Nothing could be copied from {source}: {named}{more}. Mount Drive anew (Runtime > "
            "Disconnect and delete runtime gives a fresh machine), and run it again."
        )
    with table.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("file", "reason"), *rows])
    warnings.warn(
        f"{len(rows):,} files of {source} could not be copied: {named}{more}. The others are at "
        f"{target} and can be used; {table} lists all that failed. Run it again to copy only "
        "these; if they fail again, mount Drive anew or replace them.",
        stacklevel=6,  # at the call of stage_dataset
    )
