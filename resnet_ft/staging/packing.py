"""A data set as one file, which Drive hands out much faster than many small ones, or as shards."""

import hashlib
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from resnet_ft.data.decisions import apply_decisions
from resnet_ft.data.folders import walk_images
from resnet_ft.data.index import index_dataset
from resnet_ft.errors import DatasetError, ParameterError
from resnet_ft.files import fingerprint
from resnet_ft.progress import progress_bar
from resnet_ft.staging.sharding import write_shards
from resnet_ft.staging.unfinished import unfinished

_KEY = "RESNET_FT.fingerprint"  # in a header for the whole archive: POSIX.1-2001, pax format


def pack_dataset(
    data_dir: str | Path,
    archive: str | Path,
    *,
    max_shard_mb: float | None = None,
    decisions: str | Path | pd.DataFrame | None = None,
) -> Path:
    """Write the images of a folder, in their folders, to one uncompressed .tar; return its path.

    Hidden files and whatever is not an image stay out; links become what they lead to.
    `stage_dataset` makes an equal data set of it, and equal data sets make equal files. Where
    `archive` holds this data set already, it is left as it is. Raises DatasetError where it holds
    anything else, where there are no images, and where it cannot be written.

    With `max_shard_mb`, `archive` is a folder for tar shards of up to so many megabytes, in the
    WebDataset layout, with a dataset.json, which `make_dataloaders` reads where they are: a few
    hundred megabytes are usual. Images go to the shards of their split in a random order, their
    files as they are; `decisions` (see `apply_decisions`) are carried out, and files that cannot be
    read are left out with a warning. What holds files of the same names and sizes is the same data
    set here. A call that was killed is continued. This needs the webdataset library.
    """
    data_dir, archive = Path(data_dir), Path(archive)
    _check_options(archive, max_shard_mb, decisions)
    try:
        if max_shard_mb is None:
            return _pack(data_dir, archive)
        index = index_dataset(data_dir)
        if decisions is not None:
            index = apply_decisions(index, decisions)
        return write_shards(index, archive, max_shard_mb)
    except OSError as error:
        raise DatasetError(
            f"{data_dir} could not be packed to {archive}: {error.strerror or error}. Is the disk "
            "or Drive full, may nothing be written there, or did the images change meanwhile?"
        ) from error


def _check_options(archive: Path, max_shard_mb: float | None, decisions: object) -> None:
    is_tar = archive.suffix.lower() == ".tar"
    if max_shard_mb is None and decisions is not None:
        raise ParameterError("decisions go with max_shard_mb: a single .tar holds every image.")
    if max_shard_mb is None and not is_tar:
        raise DatasetError(f"{archive} should be called something.tar: it is written uncompressed.")
    if max_shard_mb is not None and (is_tar or max_shard_mb <= 0):
        raise ParameterError(
            f"max_shard_mb={max_shard_mb} should be positive, and {archive} a folder for shards."
        )


def _pack(data_dir: Path, archive: Path) -> Path:
    with unfinished(archive) as work:
        folders = _folders(data_dir)
        identity = _identity(data_dir, folders)
        if archive.exists():
            _check_same(data_dir, archive, identity)
        else:
            _write(work / archive.name, data_dir, folders, identity)
            os.replace(work / archive.name, archive)
    return archive


def _folders(data_dir: Path) -> list[tuple[Path, list[Path]]]:
    folders = sorted(walk_images(data_dir)) if data_dir.is_dir() else []
    if not any(images for _, images in folders):
        raise DatasetError(
            f"There are no images in {data_dir} to pack. Give the folder that stage_dataset "
            "returned."
        )
    return folders


def _identity(data_dir: Path, folders: list[tuple[Path, list[Path]]]) -> str:
    """A fingerprint of all names and contents."""
    images = [path for _, images in folders for path in images]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(progress_bar(pool.map(_digest, images), "Reading", len(images)))
    names = [path.relative_to(data_dir).as_posix() for path, _ in folders]
    contents = zip((path.relative_to(data_dir).as_posix() for path in images), digests, strict=True)
    return fingerprint([*names, *(part for pair in contents for part in pair)])


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_same(data_dir: Path, archive: Path, identity: str) -> None:
    try:
        with tarfile.open(archive, "r:") as file:  # reads no more than the first header
            found = file.pax_headers.get(_KEY)
    except tarfile.TarError:
        found = None
    if found != identity:
        raise DatasetError(
            f"{archive} exists and holds something other than {data_dir}. Delete it if you do not "
            "need it, or give another name."
        )
    print(f"{archive} already holds the images of {data_dir}: nothing to do.")


def _write(
    path: Path, data_dir: Path, folders: list[tuple[Path, list[Path]]], identity: str
) -> None:
    size = sum(image.stat().st_size for _, images in folders for image in images)
    bar = progress_bar(None, f"Packing {path.name}", size, unit="B", unit_scale=True)
    headers = {_KEY: identity}
    with bar, tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as file:
        for folder, images in folders:
            if folder != data_dir:
                entry = tarfile.TarInfo(folder.relative_to(data_dir).as_posix())
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                file.addfile(entry)
            for image in images:
                with image.open("rb") as content:
                    entry = tarfile.TarInfo(image.relative_to(data_dir).as_posix())
                    entry.size = os.fstat(content.fileno()).st_size
                    file.addfile(entry, content)
                bar.update(entry.size)
