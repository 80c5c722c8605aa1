"""Unpacking an archive, or saying in plain words why that cannot be done."""

import bz2
import gzip
import lzma
import posixpath
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Literal

from resnet_ft.errors import DatasetError
from resnet_ft.notebook import progress_bar
from resnet_ft.remote import Patience

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


_RATIO = 200  # photographs hardly shrink in an archive
_SLACK = 16 << 20  # bytes: what is read ahead, and small drawings, are not judged by the ratio
_MOST_LINKS = 40  # that lead to one another, as on Linux
_BLOCK = 4096  # bytes that even an empty file takes
_CLASH = (FileExistsError, IsADirectoryError, NotADirectoryError)


class Unpacking:
    """One archive on its way into one folder: what came so far, and how much may still come."""

    def __init__(self, archive: Path, folder: Path, name: str):
        self._archive = archive
        self._name = name
        self._folder = folder
        self._names: dict[str, str] = {}  # without the difference of case -> as it is written
        self._links: dict[PurePosixPath, PurePosixPath] = {}
        self._packed = archive.stat().st_size
        self._free = shutil.disk_usage(folder).free
        self._written = 0

    def run(self, kind: str) -> None:
        """Write all of it. Raises DatasetError that names the entry which is not to be trusted."""
        bar = progress_bar(None, "Unpacking", self._packed, unit="B", unit_scale=True)
        with bar, self._archive.open("rb") as raw, open_entries(kind, raw) as entries:
            for entry in entries:
                self._take(entry, raw)
                bar.update(max(0, raw.tell() - bar.n))
        targets = {link: self._followed(link) for link in self._links}
        for link in sorted(targets, key=lambda link: (self._folder / targets[link]).is_dir()):
            self._copy(link, targets[link])

    def _take(self, entry: Entry, raw: IO[bytes]) -> None:
        path = self._place(entry.name)
        if entry.kind == "device or pipe":
            raise self._refused(entry.name, "is a device or a pipe")
        try:
            if entry.kind == "folder":
                (self._folder / path).mkdir(parents=True, exist_ok=True)
                return
            first = self._names.setdefault(str(path).casefold(), str(path))
            if first != str(path):
                raise self._refused(entry.name, f"differs from {first!r} in case only")
            self._links.pop(path, None)
            if entry.kind == "file":
                self._write(entry, self._folder / path, raw)
            else:
                start = path.parent if entry.kind == "symbolic link" else PurePosixPath()
                self._links[path] = self._place_of_target(entry, start)
        except _CLASH as error:
            raise self._refused(entry.name, "is a file and a folder at once") from error

    def _place(self, name: str) -> PurePosixPath:
        path = PureWindowsPath(name)  # takes both kinds of slashes, and knows drive letters
        if path.anchor or ".." in path.parts or "\0" in name:
            raise self._refused(name, "would be written outside of the data folder")
        return PurePosixPath(*path.parts)

    def _place_of_target(self, link: Entry, start: PurePosixPath) -> PurePosixPath:
        target = PureWindowsPath(link.target)
        path = PurePosixPath(posixpath.normpath(start.joinpath(*target.parts)))
        if target.anchor or ".." in path.parts:
            raise self._refused(link.name, f"is a link out of the data folder, to {link.target!r}")
        return path

    def _write(self, entry: Entry, target: Path, raw: IO[bytes]) -> None:
        self._make_room(entry.name, entry.size)
        target.parent.mkdir(parents=True, exist_ok=True)
        begun, chunk, written = raw.tell(), b"start", _BLOCK
        with entry.content as content, target.open("wb") as file:
            while chunk:
                chunk = content.read(1 << 20)
                written += len(chunk)
                self._make_room(entry.name, written)
                packed = raw.tell() - begun
                total = self._written + written
                if written > _RATIO * packed + _SLACK or total > _RATIO * self._packed + _SLACK:
                    raise self._refused(entry.name, f"grows to more than {_RATIO} times its size")
                file.write(chunk)
        self._written += written

    def _make_room(self, name: str, size: int) -> None:
        free = self._free - self._written
        if size > free:
            raise DatasetError(
                f"{self._name} was not unpacked: its entry {name!r} needs {size / 1e9:,.1f} GB, "
                f"and {max(0, free) / 1e9:,.1f} are free at {self._folder.parent.parent}. Make "
                "room there, or give another destination."
            )

    def _followed(self, link: PurePosixPath) -> PurePosixPath:
        """Where a link leads in the end: it may lead to another, or through one."""
        path = link
        for _ in range(_MOST_LINKS):
            via = next((part for part in (path, *path.parents) if part in self._links), None)
            if via is None:
                break
            path = self._links[via] / path.relative_to(via)
        place = self._folder / path
        if via or not place.exists() or (place.is_dir() and path in link.parents):
            raise self._refused(str(link), "is a link that leads to nothing, or in a circle")
        return path

    def _copy(self, link: PurePosixPath, path: PurePosixPath) -> None:
        source, target = self._folder / path, self._folder / link
        files = [source] if source.is_file() else [*filter(Path.is_file, source.rglob("*"))]
        for file in files:
            copied = target / file.relative_to(source)
            self._make_room(str(link), file.stat().st_size)
            copied.parent.mkdir(parents=True, exist_ok=True)
            self._written += shutil.copyfile(file, copied).stat().st_size + _BLOCK

    def _refused(self, name: str, reason: str) -> DatasetError:
        return DatasetError(
            f"{self._name} was not unpacked: its entry {name!r} {reason}. Do not trust this "
            "archive; make one yourself from the photographs."
        )


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
