"""Unpacking an archive, or saying in plain words why that cannot be done."""

import lzma
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from resnet_ft.errors import DatasetError
from resnet_ft.patience import Patience
from resnet_ft.staging.entries import ARCHIVES, archive_kind, archive_stem
from resnet_ft.staging.unpacking import Unpacking

_BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error),
    *(KeyError, ValueError, OverflowError),  # how zipfile and tarfile stumble over damaged headers
    *(RuntimeError, NotImplementedError),  # zipfile's words for a password, an unknown compression
)


def unpack(archive: Path, folder: Path, *, name: str) -> None:
    """Write the files of an archive below `folder`; links become copies of what they lead to.

    The archive is recognised by its content. Raises DatasetError, which calls it by `name`, for one
    that is damaged or encrypted, that does not fit on the disk, or that has an entry which is not
    to be trusted; `folder` then holds what was unpacked until that point.
    """
    try:
        kind = archive_kind(archive)
        if kind is None and archive_stem(name) is None:
            raise DatasetError(
                f"{name} cannot be unpacked. Give a folder, or one of {', '.join(ARCHIVES)}."
            )
        if kind is None and name.lower().endswith(".tar"):
            kind = "tar"  # of the first format, which has no signature
        if kind is None:
            raise ValueError("its content is not that of an archive")
        Patience()(lambda: Unpacking(archive, folder, name).run(kind))
    except _BROKEN as error:
        raise _broken(name, error) from error
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's word for damaged content
            raise _broken(name, error) from error
        raise DatasetError(
            f"{name} could not be unpacked to {folder.parent.parent}: {error.strerror or error}. "
            "Is the disk full, or may nothing be written there?"
        ) from error


def _broken(name: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"{name} could not be unpacked: {error or 'it ends too early'}. Is it whole? Upload it "
        "again, or make it anew without a password."
    )
