"""One archive that nobody vouches for, on its way into a folder: nothing gets outside of it."""

import posixpath
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from resnet_ft.errors import DatasetError
from resnet_ft.progress import progress_bar
from resnet_ft.staging.entries import Entry, open_entries

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
