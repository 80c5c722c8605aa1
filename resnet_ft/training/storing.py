"""The files of a run: in its folder, and on this machine's own disk while that cannot be had."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from resnet_ft.errors import RunError
from resnet_ft.files import default_cache_dir, rewrite


class Storage:
    """Writes into a folder; what fails (it is full, or Drive is gone) goes to `refuge` instead.

    The run goes on, is warned of it at once, and every further write tries the folder again.
    """

    def __init__(self, folder: Path, run_id: str):
        self.folder = folder
        self.refuge = default_cache_dir() / "runs" / f"{folder.name}-{run_id}"
        self._elsewhere: set[str] = set()
        self.last_whole: str | None = None  # the newest of last.0.pt and last.1.pt in the folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes of this machine out. Raises RunError where one is in already."""
        lock = FileLock(f"{self.refuge}.lock")
        try:
            self.refuge.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"{self.folder} is being trained by another process of this machine. Wait for its "
                "end, or end it, and run the same again."
            ) from error
        except OSError:  # nobody can write there, so nobody can be kept out
            pass
        try:
            yield
        finally:
            lock.release()

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Let `write` make a file at a temporary path, and give it its name."""

        def whole(folder: Path) -> None:
            with rewrite(folder / name) as temporary:
                write(temporary)

        self.write_in(name, whole)

    def write_in(self, name: str, write: Callable[[Path], object]) -> bool:
        """Let `write` make the file of this name in a folder; whether that is the run's own."""
        try:
            if not self.folder.is_dir():  # or else it would be made anew where Drive was mounted
                raise FileNotFoundError(f"there is no folder {self.folder} any more")
            write(self.folder)
            self._elsewhere.discard(name)
            return True
        except OSError as error:
            self._take_refuge(name, write, error)
            return False

    def remember(self, name: str) -> None:
        """Know of a file that is in the refuge since an earlier time."""
        self._elsewhere.add(name)

    def settle(self) -> None:
        """Bring what is in the refuge home, and warn of what cannot be brought."""
        for name in sorted(name for name in self._elsewhere if (self.refuge / name).is_file()):
            self.write(name, lambda path, name=name: shutil.copyfile(self.refuge / name, path))
        if not self._elsewhere:
            shutil.rmtree(self.refuge, ignore_errors=True)
        else:
            warnings.warn(
                f"{self.folder} could not be written to: {', '.join(sorted(self._elsewhere))} of "
                f"this run are in {self.refuge}, on this machine. Make room or mount Drive again, "
                "and run the training again, which then brings them there and goes on.",
                stacklevel=2,
            )

    def _take_refuge(self, name: str, write: Callable[[Path], object], error: OSError) -> None:
        known = name in self._elsewhere
        self._elsewhere.add(name)
        found = f"it is in {self.refuge}, on this machine, until the folder can be written to again"
        try:
            self.refuge.mkdir(parents=True, exist_ok=True)
            write(self.refuge)
        except OSError as second:
            found = f"it could not be written to {self.refuge} either ({second}): make room on both"
        if not known:
            warnings.warn(
                f"{name} could not be written to {self.folder} ({error}). The run goes on: {found}",
                stacklevel=4,
            )
