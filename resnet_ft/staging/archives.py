"""Unpacking an archive, or saying in plain words why that cannot be done."""

import bz2
import errno
import gzip
import lzma
import posixpath
import shutil
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from resnet_ft.errors import DatasetError
from resnet_ft.notebook import progress_bar
from resnet_ft.reading import LONGEST_NAME, StrictTarInfo
from resnet_ft.remote import DriveRetry

# How a tar may be compressed: its suffixes, its first bytes and what opens it.
_COMPRESSIONS: list[tuple[tuple[str, ...], bytes, Callable[[IO[bytes]], Any]]] = [
    ((".tar.gz", ".tgz"), b"\x1f\x8b", gzip.open),
    ((".tar.xz", ".txz"), b"\xfd7zXZ\0", lzma.open),
    ((".tar.bz2", ".tbz2"), b"BZh", bz2.open),
]
ARCHIVES = (".zip", ".tar", *(suffix for suffixes, *_ in _COMPRESSIONS for suffix in suffixes))
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error),
    *(KeyError, ValueError, OverflowError),  # zipfile and tarfile raise these for damaged headers
    *(RuntimeError, NotImplementedError),  # zipfile: a password, an unknown compression
)
_RATIO = 200  # images hardly shrink in an archive
_SLACK = 16 << 20  # bytes beyond the ratio: for what is read ahead, and for small drawings
_MOST_LINKS = 40  # in a chain, as on Linux
_BLOCK = 4096  # bytes that even an empty file takes
_TRAILER = 16 << 20  # bytes after the last entry that are read to verify the checksum at the end


def archive_stem(name: str) -> str | None:
    """The name of an archive without its suffix; None where it has none of `ARCHIVES`."""
    suffix = next((suffix for suffix in ARCHIVES if name.lower().endswith(suffix)), None)
    return name[: -len(suffix)] if suffix else None


def unpack(archive: Path, folder: Path, *, name: str) -> None:
    """Write the files of an archive below `folder`; links become copies of what they lead to.

    The archive is recognised by its content. Raises DatasetError, which calls it by `name`, for one
    that is damaged or encrypted, that does not fit on the disk, or that has an entry which should
    not be trusted, and OSError; `folder` then holds what was unpacked until that point.
    """
    try:
        DriveRetry()(lambda: _Unpacking(archive, folder, name).run())
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # gzip and bz2 give damaged content none
            raise
        raise DatasetError(
            f"{name} could not be unpacked: {error or 'it ends too early'}. Is it complete? Upload "
            "it again, or make it again without a password."
        ) from error


class _Unpacking:
    """One archive and the folder that it is unpacked to: names, links and bytes so far."""

    def __init__(self, archive: Path, folder: Path, name: str):
        self._archive = archive
        self._name = name
        self._folder = folder
        self._names: dict[str, str] = {}  # in lower case -> as it is written
        self._links: dict[PurePosixPath, PurePosixPath] = {}
        self._too_long: list[str] = []
        self._rooted: list[str] = []
        self._repeated: list[str] = []
        self._packed = archive.stat().st_size
        self._free = shutil.disk_usage(folder).free
        self._written = 0

    def run(self) -> None:
        bar = progress_bar(None, "Unpacking", self._packed, unit="B")
        with bar, self._archive.open("rb") as raw, closing(_entries(raw, self._name)) as entries:
            for entry, content in entries:
                with self._skipping_long_names(entry.name):
                    self._take(entry, content, raw)
                bar.update(max(0, raw.tell() - bar.n))

        sources: dict[PurePosixPath, Path] = {}
        for link in self._links:
            with self._skipping_long_names(str(link)):
                sources[link] = self._followed(link)
        for link in sorted(sources, key=lambda link: sources[link].is_dir()):
            source, target = sources[link], self._folder / link
            files = [source] if source.is_file() else [*filter(Path.is_file, source.rglob("*"))]
            for file in files:
                copied = target / file.relative_to(source)
                self._make_room(str(link), file.stat().st_size)
                with self._skipping_long_names(str(copied.relative_to(self._folder))):
                    copied.parent.mkdir(parents=True, exist_ok=True)
                    self._written += shutil.copyfile(file, copied).stat().st_size + _BLOCK
        for names, what in (
            (self._too_long, "have names that are too long for this disk, and are left out"),
            (self._rooted, "begin with a slash, which is left out"),
            (self._repeated, "have a name that an earlier one has too, which they replace"),
        ):
            if names:
                warnings.warn(
                    f"{self._name}: {len(names)} entries {what}, such as {names[0][:80]!r}.",
                    stacklevel=2,
                )

    @contextmanager
    def _skipping_long_names(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            self._too_long.append(name)

    def _take(self, entry: tarfile.TarInfo, content: IO[bytes] | None, raw: IO[bytes]) -> None:
        # It takes both kinds of slashes, and knows drive letters. Leading slashes are left out, as
        # by all archivers.
        path = PureWindowsPath(entry.name.lstrip("/\\"))
        if entry.name.startswith(("/", "\\")):
            self._rooted.append(entry.name)
        if path.anchor or ".." in path.parts or "\0" in entry.name:
            raise self._refused(entry.name, "would be written outside of the data folder")
        place = PurePosixPath(*path.parts)
        try:
            if entry.isdir() or not path.parts:
                (self._folder / place).mkdir(parents=True, exist_ok=True)
                return
            if (first := self._names.get(str(place).casefold())) == str(place):
                self._repeated.append(entry.name)
            elif first is not None:
                raise self._refused(entry.name, f"differs from {first!r} in case only")
            self._names[str(place).casefold()] = str(place)
            self._links.pop(place, None)
            if content is not None:
                self._write(entry, content, self._folder / place, raw)
            elif entry.issym() or entry.islnk():
                # A symbolic link starts at its folder, a hard link at the top.
                start = place.parent if entry.issym() else PurePosixPath()
                # A hard link names an entry.
                leads_to = entry.linkname if entry.issym() else entry.linkname.lstrip("/\\")
                link = PureWindowsPath(leads_to)
                target = PurePosixPath(posixpath.normpath(start.joinpath(*link.parts)))
                if link.anchor or ".." in target.parts:
                    reason = f"is a link out of the data folder, to {entry.linkname!r}"
                    raise self._refused(entry.name, reason)
                self._links[place] = target
            else:
                raise self._refused(entry.name, "is a device or a pipe")
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise self._refused(entry.name, "is a file and a folder at once") from error

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

    def _followed(self, link: PurePosixPath) -> Path:
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
        return place

    def _refused(self, name: str, reason: str) -> DatasetError:
        return DatasetError(
            f"{self._name} was not unpacked: its entry {name!r} {reason}. Do not trust this "
            "archive; make one yourself from the images."
        )


def _entries(
    raw: IO[bytes], name: str
) -> Generator[tuple[tarfile.TarInfo, IO[bytes] | None], None, None]:
    """Each entry of an archive as a TarInfo, also of a zip, and the content of a regular file.

    The first bytes of `raw` tell the format. It is read from its beginning to its end, as far as
    the entries lie in order. An archive that is damaged or cut off raises one of `_DAMAGED`.
    """
    head = raw.read(512)
    raw.seek(0)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        with zipfile.ZipFile(raw) as archive:
            for info in archive.infolist():
                entry = tarfile.TarInfo(info.filename)
                entry.size = info.file_size
                file_type = stat.S_IFMT(info.external_attr >> 16)
                if info.filename.endswith(("/", "\\")):  # some programs on Windows write "\"
                    entry.type = tarfile.DIRTYPE
                elif file_type == stat.S_IFLNK:
                    entry.type = tarfile.SYMTYPE
                    with archive.open(info) as content:
                        target = content.read(LONGEST_NAME)
                    entry.linkname = target.decode("utf-8", "surrogateescape")
                elif file_type not in (0, stat.S_IFREG):
                    entry.type = tarfile.FIFOTYPE  # or a device: both are refused
                yield entry, archive.open(info) if entry.isreg() else None
        return

    decompress = next((open_ for _, magic, open_ in _COMPRESSIONS if head.startswith(magic)), None)
    # The oldest tar format has no signature.
    if not decompress and head[257:262] != b"ustar" and not name.lower().endswith(".tar"):
        if archive_stem(name):
            raise ValueError("its content is not that of an archive")
        raise DatasetError(
            f"{name} cannot be unpacked. Give a folder, or one of {', '.join(ARCHIVES)}."
        )
    with decompress(raw) if decompress else raw as stream:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=StrictTarInfo) as tar:
            for entry in tar:
                yield entry, tar.extractfile(entry) if entry.isreg() else None
        for _ in range(_TRAILER >> 20):
            if not stream.read(1 << 20):
                break
