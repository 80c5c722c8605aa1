"""The entries of a zip or tar archive, one after the other, whatever its compression."""

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_MAGIC = {b"PK\3\4": "zip", b"PK\5\6": "zip", b"\x1f\x8b": "gz", b"\xfd7zXZ\0": "xz", b"BZh": "bz2"}
_OPENERS = {"gz": gzip.open, "xz": lzma.open, "bz2": bz2.open}
_LONGEST_NAME = 1 << 20  # bytes; tarfile reads a name into memory, however long it says that it is
# Headers whose content is the name of the entry that follows, or says more of it.
_NAME_TYPES = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_TRAILER = 16 << 20  # bytes after the last entry that are read to see that the archive is whole


@dataclass
class Entry:
    """One entry: `content` of a file, or `target` of a link (symbolic: from where it lies)."""

    name: str
    kind: Literal["file", "folder", "symbolic link", "hard link", "device or pipe"]
    size: int = 0
    content: IO[bytes] | None = None
    target: str = ""


def archive_kind(path: Path) -> str | None:
    """What a file is by its first bytes: zip, gz, xz, bz2 or tar; None for anything else."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[257:262] == b"ustar":
        return "tar"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def archive_stem(name: str) -> str | None:
    """The name of an archive without its suffix; None where it has none that archives have."""
    suffix = next((suffix for suffix in ARCHIVES if name.lower().endswith(suffix)), None)
    return name[: -len(suffix)] if suffix else None


@contextmanager
def open_entries(kind: str, raw: IO[bytes]) -> Iterator[Iterator[Entry]]:
    """The entries of an open archive of the `kind` that `archive_kind` tells.

    Reads `raw` from its beginning to its end, as far as the entries lie in order. An archive that
    is damaged or cut off raises an error of zipfile, tarfile or of the compression.
    """
    if kind == "zip":
        with zipfile.ZipFile(raw) as archive:
            yield (_from_zip(archive, info) for info in archive.infolist())
    else:
        with _OPENERS[kind](raw) if kind in _OPENERS else raw as stream:
            with tarfile.open(fileobj=stream, mode="r:", tarinfo=_StrictTarInfo) as archive:
                yield (_from_tar(archive, info) for info in archive)
            for _ in range(_TRAILER >> 20):  # up to the checksum at the end
                if not stream.read(1 << 20):
                    break


def _from_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    file_type = stat.S_IFMT(info.external_attr >> 16)
    if info.filename.endswith(("/", "\\")):  # some programs on Windows write their own slashes
        return Entry(info.filename, "folder")
    if file_type == stat.S_IFLNK:
        with archive.open(info) as content:
            target = content.read(_LONGEST_NAME).decode("utf-8", "surrogateescape")
        return Entry(info.filename, "symbolic link", target=target)
    if file_type not in (0, stat.S_IFREG):
        return Entry(info.filename, "device or pipe")
    return Entry(info.filename, "file", info.file_size, archive.open(info))


def _from_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Entry:
    if info.isdir():
        return Entry(info.name, "folder")
    if info.issym():
        return Entry(info.name, "symbolic link", target=info.linkname)
    if info.islnk():
        return Entry(info.name, "hard link", target=info.linkname)
    if not info.isreg():
        return Entry(info.name, "device or pipe")
    if info.size < 0:  # the next entry would be this one, for ever
        raise tarfile.ReadError(f"its entry {info.name!r} has a size below zero")
    return Entry(info.name, "file", info.size, archive.extractfile(info))


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header, or none, for the end of an archive; here these are errors."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise  # the block of zeros that ends an archive
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"it ends or is damaged at byte {archive.offset:,}") from error

    @classmethod
    def frombuf(cls, block: bytes, encoding: str, errors: str) -> "_StrictTarInfo":
        info = super().frombuf(block, encoding, errors)
        if info.type in _NAME_TYPES and not 0 <= info.size <= _LONGEST_NAME:
            raise tarfile.ReadError(f"an entry's name takes {info.size:,} bytes")
        return info
