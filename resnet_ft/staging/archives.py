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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, NamedTuple, Self

from resnet_ft.errors import DatasetError
from resnet_ft.notebook import progress_bar
from resnet_ft.remote import DriveRetry


class _Compression(NamedTuple):
    suffixes: tuple[str, ...]
    magic: bytes  # the first bytes of a file
    open: Callable[[IO[bytes]], Any]  # Any: each library has its own type for a readable stream


# Of tar files; a row is all that another one needs.
_COMPRESSIONS = (
    _Compression((".tar.gz", ".tgz"), b"\x1f\x8b", gzip.open),
    _Compression((".tar.xz", ".txz"), b"\xfd7zXZ\0", lzma.open),
    _Compression((".tar.bz2", ".tbz2"), b"BZh", bz2.open),
)
ARCHIVES = (".zip", ".tar", *(suffix for row in _COMPRESSIONS for suffix in row.suffixes))
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error),
    *(KeyError, ValueError, OverflowError),  # zipfile and tarfile raise these for damaged headers
    *(RuntimeError, NotImplementedError),  # zipfile: a password, an unknown compression
)


def archive_stem(name: str) -> str | None:
    """The name of an archive without its suffix; None where it has none of `ARCHIVES`."""
    suffix = next((suffix for suffix in ARCHIVES if name.lower().endswith(suffix)), None)
    return name[: -len(suffix)] if suffix else None


def unpack(archive: Path, folder: Path, *, name: str) -> None:
    """Write the files of an archive below `folder`; links become copies of what they lead to.

    The archive is recognised by its content. Raises DatasetError, which calls it by `name`, for one
    that is damaged or encrypted, that does not fit on the disk, or that has an entry which should
    not be trusted; `folder` then holds what was unpacked until that point.
    """
    try:
        DriveRetry()(lambda: _Unpacking(archive, folder, name).run())
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # gzip and bz2 give damaged content none
            raise DatasetError(
                f"{name} could not be unpacked to {folder.parent.parent}: "
                f"{error.strerror or error}. Is the disk full or read-only?"
            ) from error
        raise DatasetError(
            f"{name} could not be unpacked: {error or 'it ends too early'}. Is it complete? Upload "
            "it again, or make it again without a password."
        ) from error


_RATIO = 200  # images hardly shrink in an archive
_SLACK = 16 << 20  # bytes beyond the ratio: for what is read ahead, and for small drawings
_MOST_LINKS = 40  # in a chain, as on Linux
_BLOCK = 4096  # bytes that even an empty file takes
_TOP = PurePosixPath()


class _Unpacking:
    """One archive and the folder that it is unpacked to: names, links and bytes so far."""

    def __init__(self, archive: Path, folder: Path, name: str):
        self._archive = archive
        self._name = name
        self._folder = folder
        self._names: dict[str, str] = {}  # in lower case -> as it is written
        self._links: dict[PurePosixPath, PurePosixPath] = {}
        self._packed = archive.stat().st_size
        self._free = shutil.disk_usage(folder).free
        self._written = 0

    def run(self) -> None:
        bar = progress_bar(None, "Unpacking", self._packed, unit="B", unit_scale=True)
        with bar, self._archive.open("rb") as raw, _open_entries(raw, self._name) as entries:
            for entry, content in entries:
                self._take(entry, content, raw)
                bar.update(max(0, raw.tell() - bar.n))
        targets = {link: self._followed(link) for link in self._links}
        for link in sorted(targets, key=lambda link: (self._folder / targets[link]).is_dir()):
            self._copy(link, targets[link])

    def _take(self, entry: tarfile.TarInfo, content: IO[bytes] | None, raw: IO[bytes]) -> None:
        path = PureWindowsPath(entry.name)  # takes both kinds of slashes, and knows drive letters
        if path.anchor or ".." in path.parts or "\0" in entry.name:
            raise self._refused(entry.name, "would be written outside of the data folder")
        place = PurePosixPath(*path.parts)
        try:
            if entry.isdir():
                (self._folder / place).mkdir(parents=True, exist_ok=True)
                return
            first = self._names.setdefault(str(place).casefold(), str(place))
            if first != str(place):
                raise self._refused(entry.name, f"differs from {first!r} in case only")
            self._links.pop(place, None)
            if content is not None:
                self._write(entry, content, self._folder / place, raw)
            elif entry.issym() or entry.islnk():
                # A symbolic link starts at its folder, a hard link at the top.
                self._links[place] = self._target(entry, place.parent if entry.issym() else _TOP)
            else:
                raise self._refused(entry.name, "is a device or a pipe")
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise self._refused(entry.name, "is a file and a folder at once") from error

    def _target(self, link: tarfile.TarInfo, start: PurePosixPath) -> PurePosixPath:
        target = PureWindowsPath(link.linkname)
        path = PurePosixPath(posixpath.normpath(start.joinpath(*target.parts)))
        if target.anchor or ".." in path.parts:
            reason = f"is a link out of the data folder, to {link.linkname!r}"
            raise self._refused(link.name, reason)
        return path

    def _write(
        self, entry: tarfile.TarInfo, content: IO[bytes], path: Path, raw: IO[bytes]
    ) -> None:
        self._make_room(entry.name, entry.size)
        path.parent.mkdir(parents=True, exist_ok=True)
        begun, chunk, written = raw.tell(), b"start", _BLOCK
        with content, path.open("wb") as file:
            while chunk:
                chunk = content.read(1 << 20)
                written += len(chunk)
                self._make_room(entry.name, written)
                packed, total = raw.tell() - begun, self._written + written
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
        """Where a link leads in the end: it may lead to another link, or through one."""
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
            "archive; make one yourself from the images."
        )


_Entry = tuple[tarfile.TarInfo, IO[bytes] | None]
_LONGEST_NAME = 1 << 20  # bytes; tarfile reads a name into memory, however long its header says
_TRAILER = 16 << 20  # bytes after the last entry that are read to verify the checksum at the end


@contextmanager
def _open_entries(raw: IO[bytes], name: str) -> Iterator[Iterator[_Entry]]:
    """Each entry of an archive as a TarInfo, also of a zip, and the content of a regular file.

    The first bytes of `raw` tell the format. It is read from its beginning to its end, as far as
    the entries lie in order. An archive that is damaged or cut off raises one of `_DAMAGED`.
    """
    head = raw.read(512)
    raw.seek(0)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        with zipfile.ZipFile(raw) as archive:
            yield (_from_zip(archive, entry) for entry in archive.infolist())
        return
    decompress = next((row.open for row in _COMPRESSIONS if head.startswith(row.magic)), None)
    # The oldest tar format has no signature.
    if not decompress and head[257:262] != b"ustar" and not name.lower().endswith(".tar"):
        if archive_stem(name):
            raise ValueError("its content is not that of an archive")
        raise DatasetError(
            f"{name} cannot be unpacked. Give a folder, or one of {', '.join(ARCHIVES)}."
        )
    with decompress(raw) if decompress else raw as stream:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_StrictTarInfo) as tar:
            yield ((entry, _content(tar, entry)) for entry in tar)
        for _ in range(_TRAILER >> 20):
            if not stream.read(1 << 20):
                break


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes] | None:
    if entry.isreg() and entry.size < 0:  # the next entry would be this one, for ever
        raise tarfile.ReadError(f"its entry {entry.name!r} has a size below zero")
    return tar.extractfile(entry) if entry.isreg() else None


def _from_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    entry = tarfile.TarInfo(info.filename)
    entry.size = info.file_size
    file_type = stat.S_IFMT(info.external_attr >> 16)
    if info.filename.endswith(("/", "\\")):  # some programs on Windows write their own slashes
        entry.type = tarfile.DIRTYPE
    elif file_type == stat.S_IFLNK:
        entry.type = tarfile.SYMTYPE
        with archive.open(info) as content:
            entry.linkname = content.read(_LONGEST_NAME).decode("utf-8", "surrogateescape")
    elif file_type not in (0, stat.S_IFREG):
        entry.type = tarfile.FIFOTYPE  # or a device: both are refused
    return entry, archive.open(info) if entry.isreg() else None


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged or missing header for the end of an archive; here it is an error."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed does not list it
            raise  # the block of zeros that ends an archive
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"it ends or is damaged at byte {archive.offset:,}") from error

    @classmethod
    def frombuf(cls, block: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(block, encoding, errors)
        # Headers whose content is the name of the next entry, or more about it.
        is_name = info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        is_more = info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if (is_name or is_more) and not 0 <= info.size <= _LONGEST_NAME:
            raise tarfile.ReadError(f"an entry's name takes {info.size:,} bytes")
        return info
