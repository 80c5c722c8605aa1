"""A local copy of a slow folder, kept equal to it: parallel, verified, resumable."""

import csv
import errno
import os
import shutil
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resnet_ft.data.folders import find_images, walk_images
from resnet_ft.errors import DatasetError
from resnet_ft.patience import Patience, in_parallel, means_full_disk
from resnet_ft.progress import progress_bar
from resnet_ft.staging.listing import Listing, in_words, list_images
from resnet_ft.staging.manifest import Manifest, Stamp
from resnet_ft.staging.shrinking import shrunk

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
