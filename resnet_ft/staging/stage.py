"""Bringing a data set to local disk, from a folder, an archive, Google Drive or the web."""

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from difflib import SequenceMatcher
from pathlib import Path, PurePath
from urllib.parse import unquote, urlsplit

from resnet_ft.data.folders import subfolders
from resnet_ft.data.layout import like, listed, looks_like_dataset
from resnet_ft.data.sample import make_sample_dataset
from resnet_ft.errors import DatasetError, ParameterError
from resnet_ft.files import fingerprint, is_on_drive, user_path
from resnet_ft.remote import check_address, is_address, masked
from resnet_ft.staging.archives import ARCHIVES, archive_stem, unpack
from resnet_ft.staging.copy import copy_folder
from resnet_ft.staging.download import download
from resnet_ft.staging.hubs import download_from_hub, is_on_hub
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
    address of an archive, "kaggle:owner/name" or "hf:owner/name" (see `download_from_hub`), or
    "sample" for the data set that the library draws itself; a relative path starts at
    `relative_to`. A folder on local disk is used where it is. `workers` threads copy
    a folder on Google Drive below `destination`, and the next call updates the copy. An archive is
    unpacked there. Running again is cheap: it fetches only what is missing and resumes what was
    interrupted.

    With `max_side`, images whose longer side has more pixels are shrunk to it, upright, in a
    separate copy. A warning names files that cannot be copied. Raises DatasetError for a source
    that cannot be read or should not be trusted (then nothing is left behind), and for a full disk.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise ParameterError(
            f"source={source!r} should be a folder, an archive, a web address, or "
            '"sample" (in the notebooks: data_dir).'
        )
    for option, number in (("workers", workers), ("max_side", max_side)):
        if number is not None and number < 1:
            raise ParameterError(f"{option} is {number}. Give a whole number of at least 1.")
    if is_on_hub(source):
        source = download_from_hub(str(source))
    elif source != "sample" and not is_address(source):
        source = Path(user_path(relative_to), user_path(source))
    destination, suffix = user_path(destination), f"-{max_side}px" if max_side else ""
    try:
        if isinstance(source, Path) and source.is_dir():
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

        name, fill = _name_and_filler(source, user_path(relative_to))
        target = destination / f"{name}{suffix}"
        if not target.exists() or is_unfinished(target):
            with unfinished(target) as work:
                if not target.exists():
                    files = work / "files"  # renamed at the end: a target that exists is complete
                    files.mkdir()
                    fill(files)
                    if max_side:
                        shrink_folder(files, max_side)
                    files.rename(target)
                shutil.rmtree(work / RESUMABLE, ignore_errors=True)
        return target
    except OSError as error:
        reason = f"{masked(source)} could not be staged in {destination}: {error}"
        raise DatasetError(f"{reason}. Is the disk full or read-only?") from error


def _name_and_filler(source: str | Path, relative_to: Path) -> tuple[str, Callable[[Path], object]]:
    """A folder's name for the sample, an archive or an address, and the function that fills it."""
    if source == "sample":
        return "sample", make_sample_dataset

    if isinstance(source, Path):
        if not source.exists():
            raise DatasetError(
                f"There is no data set at {source}.{_meant(source, relative_to)} It should be a "
                f"folder, an archive ({', '.join(ARCHIVES)}), the address of one, "
                '"kaggle:owner/name", "hf:owner/name", or "sample". If it is on Drive, is Drive '
                "mounted?"
            )
        stem, status = archive_stem(source.name) or source.stem, source.stat()
        identity = fingerprint([source.absolute(), status.st_size, status.st_mtime_ns])
        return f"{stem}-{identity[:8]}", lambda folder: unpack(source, folder, name=str(source))

    check_address(source)
    shown = masked(source)

    def download_and_unpack(folder: Path) -> None:
        archive = download(source, folder.parent / RESUMABLE)
        try:
            unpack(archive, folder, name=shown)
        except (DatasetError, OSError):
            shutil.rmtree(archive.parent)  # the next call should not try the same bytes again
            raise

    parts = urlsplit(shown)
    last = unquote(parts.path).rstrip("/").rpartition("/")[2] or parts.netloc
    stem = re.sub(r"[^\w.-]+", "_", archive_stem(last) or last).strip("._")[:60] or "download"
    return f"{stem}-{fingerprint([shown])[:8]}", download_and_unpack


def _meant(missing: Path, relative_to: Path) -> str:
    """A sentence about what a path that does not exist may have meant: a name like it, as one
    writes it in its place, or else the data sets that are there."""

    def written(path: Path) -> str:
        inside = path.is_relative_to(relative_to)
        return (path.relative_to(relative_to) if inside else path).as_posix()

    def likeness(name: str) -> float:
        last = PurePath(name).name
        return max(_likeness(name, written(missing)), _likeness(last, missing.name))

    place = next((folder for folder in missing.parents if folder.is_dir()), missing.parent)
    with suppress(OSError, DatasetError):  # of a folder that cannot be listed
        beside = _folders_and_archives(place)
        below = [inner for path in beside if path.is_dir() for inner in _folders_and_archives(path)]
        names = ["sample", *map(written, [*beside, *below])]
        if likeness(nearest := max(names, key=likeness)) > 0.75:
            return f" Did you mean {nearest}?"
        folders = [path for path in [*beside, *below] if path.is_dir()]
        if found := [written(path) for path in folders if looks_like_dataset(path)]:
            return f" Data sets there: {listed(found)}."
    return ""


def _likeness(*names: str) -> float:
    """From 0 to 1, whatever the case, spaces, hyphens and the suffix of an archive."""
    one, other = (like(archive_stem(name) or name) for name in names)
    return SequenceMatcher(None, one, other).ratio()


def _folders_and_archives(folder: Path, most: int = 50) -> list[Path]:
    """What may be a data set in a folder; not all where there are many, as Drive is slow."""
    archives = [path for path in folder.iterdir() if archive_stem(path.name)]
    return [*subfolders(folder)[:most], *sorted(archives)[:most]]
