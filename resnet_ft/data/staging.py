"""From where a data set is kept (a folder, an archive, Google Drive) to a folder on local disk."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from tempfile import mkdtemp
from typing import IO

from tqdm.auto import tqdm

from resnet_ft.data.drive import is_on_drive
from resnet_ft.data.sample import make_sample_dataset
from resnet_ft.errors import DatasetError
from resnet_ft.files import atomic_write, fingerprint

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(RuntimeError, NotImplementedError),  # zipfile's words for a password, an unknown compression
)


def stage_dataset(
    source: str | Path, destination: str | Path = "data", *, workers: int = 32
) -> Path:
    """Bring a data set to local disk and return the folder that holds it.

    `source` is a folder, a .zip or .tar(.gz, .xz, .bz2) archive, or "sample" for the data set that
    the library draws itself. A folder on local disk is used where it is. A folder on Google Drive
    is copied below `destination` by `workers` threads, an archive is unpacked there. Running again
    is cheap: what is there already is not fetched again. An archive that would write outside its
    folder, or that cannot be read, is refused with a DatasetError and leaves nothing behind.
    """
    destination = Path(destination)
    if source == "sample":
        return _stage_once(destination / "sample", make_sample_dataset)
    source = Path(source)
    if source.is_dir():
        return _copy_folder(source, destination, workers) if is_on_drive(source) else source
    if not source.exists():
        raise DatasetError(
            f"There is no data set at {source}. Check the path: it should be a folder, an archive "
            f'({", ".join(_ARCHIVES)}) or "sample". If it is on Drive, is Drive mounted?'
        )
    stem = _archive_stem(source)
    status = source.stat()
    identity = fingerprint([source.absolute(), status.st_size, status.st_mtime_ns])
    return _stage_once(
        destination / f"{stem}-{identity[:8]}", lambda folder: _unpack(source, folder)
    )


def _archive_stem(path: Path) -> str:
    for suffix in _ARCHIVES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    raise DatasetError(
        f"{path} cannot be unpacked. Give a folder, or one of {', '.join(_ARCHIVES)}."
    )


def _stage_once(target: Path, fill) -> Path:
    """Fill a temporary folder and rename it, so that `target` is complete as soon as it exists."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            fill(partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _copy_folder(source: Path, destination: Path, workers: int) -> Path:
    target = destination / f"{source.name}-{fingerprint([source.absolute()])[:8]}"
    files = [path for path in source.rglob("*") if path.is_file()]

    def copy(path: Path) -> None:
        copied = target / path.relative_to(source)
        if not copied.exists() or copied.stat().st_size != path.stat().st_size:
            with atomic_write(copied) as temporary:
                shutil.copyfile(path, temporary)

    with ThreadPoolExecutor(workers) as pool:
        progress = tqdm(pool.map(copy, files), total=len(files), desc="Copying", unit="file")
        for _ in progress:
            pass
    return target


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with _members(archive) as members:
            for name, content in tqdm(members, desc=f"Unpacking {archive.name}", unit="file"):
                target = _inside(folder, name, archive)
                target.parent.mkdir(parents=True, exist_ok=True)
                with content, target.open("xb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
    except _BROKEN as error:
        raise DatasetError(
            f"{archive} could not be unpacked: {error}. Is it whole? Upload it again, or make it "
            "anew without a password."
        ) from error


def _inside(folder: Path, name: str, archive: Path) -> Path:
    """Where an entry goes, or DatasetError where that would be outside of `folder`."""
    entry = PureWindowsPath(name)  # takes both kinds of slashes, and knows drive letters
    if entry.anchor or ".." in entry.parts or not entry.parts:
        raise DatasetError(
            f"{archive} was not unpacked: its entry {name!r} would be written outside of the data "
            "folder. Do not trust this archive; make one yourself from the photographs."
        )
    return folder.joinpath(*entry.parts)


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """The regular files of an archive, by name and open content; links and devices are left out."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            yield (
                (info.filename, file.open(info)) for info in file.infolist() if not info.is_dir()
            )
    else:
        with tarfile.open(archive) as file:
            yield ((info.name, file.extractfile(info)) for info in file if info.isreg())
