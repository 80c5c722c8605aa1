"""Unpacking an archive so that nothing is written outside of the folder that it is meant for."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import IO

from tqdm.auto import tqdm

from resnet_ft.errors import DatasetError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, KeyError),
    *(RuntimeError, NotImplementedError),  # zipfile's words for a password, an unknown compression
)


def archive_stem(path: Path) -> str:
    """The name of an archive without its suffix. Raises DatasetError for other files."""
    for suffix in ARCHIVES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    raise DatasetError(
        f"{path} cannot be unpacked. Give a folder, or one of {', '.join(ARCHIVES)}."
    )


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of an archive below `folder`, or raise DatasetError with what to do."""
    try:
        with _members(archive) as members:
            for name, content in tqdm(members, desc=f"Unpacking {archive.name}", unit="file"):
                target = _inside(folder, name, archive)
                target.parent.mkdir(parents=True, exist_ok=True)
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
    except _BROKEN as error:
        raise DatasetError(
            f"{archive} could not be unpacked: {error}. Is it whole? Upload it again, or make it "
            "anew without a password."
        ) from error
    except OSError as error:
        raise DatasetError(
            f"{archive} could not be unpacked to {folder.parent}: {error.strerror or error}. Is "
            "the disk full, or may nothing be written there?"
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
    """The files of an archive, by name and content; symbolic links and devices are left out."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            yield (
                (info.filename, file.open(info)) for info in file.infolist() if not info.is_dir()
            )
    else:
        with tarfile.open(archive) as file:
            yield (
                (info.name, file.extractfile(info)) for info in file if info.isreg() or info.islnk()
            )
