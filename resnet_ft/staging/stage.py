"""Bringing a data set to local disk, from a folder, an archive, Google Drive or the web."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from resnet_ft.data.sample import make_sample_dataset
from resnet_ft.errors import DatasetError, ParameterError
from resnet_ft.files import fingerprint, is_on_drive
from resnet_ft.staging.archives import ARCHIVES, archive_stem, unpack
from resnet_ft.staging.copy import copy_folder
from resnet_ft.staging.download import download
from resnet_ft.staging.shrink import shrink_folder
from resnet_ft.staging.workfolder import RESUMABLE, is_unfinished, unfinished


def stage_dataset(
    source: str | Path,
    destination: str | Path = "data",
    *,
    relative_to: str | Path = ".",
    workers: int = 32,
    max_side: int | None = None,
) -> Path:
    """Bring a data set to local disk and return the folder that holds it.

    `source` is a folder, an archive (a .zip or a .tar, which may be compressed), the http(s)
    address of an archive, or "sample" for the data set that the library draws itself; a relative
    path starts at `relative_to`. A folder on local disk is used where it is. From a folder on
    Google Drive, `workers` threads copy folders and images below `destination`, and the copy
    follows what changes on Drive. An archive is unpacked there. Running again is cheap: it fetches
    only what is missing, resumes what was interrupted, and asks no server for an archive that is
    unpacked already.

    With `max_side`, images whose longer side has more pixels are shrunk to it, upright, in a
    separate copy: the source is never changed. A warning names files that cannot be copied.
    Raises DatasetError for a source that cannot be read or should not be trusted, and for a full
    disk; a refused archive leaves nothing behind.
    """
    for name, number in (("workers", workers), ("max_side", max_side)):
        if number is not None and number < 1:
            raise ParameterError(f"{name} is {number}. Give a whole number of at least 1.")
    is_url = isinstance(source, str) and source.lower().startswith(("http://", "https://"))
    if not is_url and source != "sample":
        source = Path(relative_to, source)
    destination, suffix = Path(destination), f"-{max_side}px" if max_side else ""
    try:
        if isinstance(source, Path):
            return _stage_path(source, destination, suffix, workers, max_side)
        if source == "sample":
            return _stage_once(destination / f"sample{suffix}", make_sample_dataset, max_side)
        url, target = (
            source,
            destination / f"{_name_of(source)}-{fingerprint([source])[:8]}{suffix}",
        )
        return _stage_once(target, lambda folder: _from_web(url, folder), max_side)
    except OSError as error:
        reason = f"{source} could not be staged in {destination}: {error}"
        raise DatasetError(f"{reason}. Is the disk full or read-only?") from error


def _stage_path(
    source: Path, destination: Path, suffix: str, workers: int, max_side: int | None
) -> Path:
    if source.is_dir():
        if not max_side and not is_on_drive(source):
            return source
        target = destination / f"{source.name}-{fingerprint([source.absolute()])[:8]}{suffix}"
        if target.resolve().is_relative_to(source.resolve()):
            raise DatasetError(
                f"{source} would be copied into itself, to {target}. Give another destination."
            )
        with unfinished(target) as work:
            copy_folder(source, target, work, workers=workers, max_side=max_side)
        return target
    if not source.exists():
        raise DatasetError(
            f"There is no data set at {source}. Check the path: it should be a folder, an archive "
            f'({", ".join(ARCHIVES)}), the address of one, or "sample". If it is on Drive, is '
            "Drive mounted?"
        )
    stem, status = archive_stem(source.name) or source.stem, source.stat()
    identity = fingerprint([source.absolute(), status.st_size, status.st_mtime_ns])
    target = destination / f"{stem}-{identity[:8]}{suffix}"
    return _stage_once(target, lambda folder: unpack(source, folder, name=str(source)), max_side)


def _stage_once(target: Path, fill: Callable[[Path], object], max_side: int | None) -> Path:
    """Fill a temporary folder and rename it, so that `target` is complete as soon as it exists."""
    if not target.exists() or is_unfinished(target):
        with unfinished(target) as work:
            if not target.exists():
                (work / "files").mkdir()
                fill(work / "files")
                if max_side:
                    shrink_folder(work / "files", max_side)
                (work / "files").rename(target)
            shutil.rmtree(work / RESUMABLE, ignore_errors=True)
    return target


def _from_web(url: str, folder: Path) -> None:
    archive = download(url, folder.parent / RESUMABLE)
    try:
        unpack(archive, folder, name=url)
    except DatasetError:
        shutil.rmtree(archive.parent)  # the next call should not try the same bytes again
        raise


def _name_of(url: str) -> str:
    """A name for a folder, from the last part of an address."""
    parts = urlsplit(url)
    name = unquote(parts.path).rstrip("/").rpartition("/")[2] or parts.netloc
    return re.sub(r"[^\w.-]+", "_", archive_stem(name) or name).strip("._")[:60] or "download"
