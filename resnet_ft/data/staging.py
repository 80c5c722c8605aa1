"""From where a data set is kept (a folder, an archive, Google Drive) to a folder on local disk."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp

from tqdm.auto import tqdm

from resnet_ft.data.archives import ARCHIVES, archive_stem, unpack
from resnet_ft.data.drive import is_on_drive
from resnet_ft.data.folders import find_images, walk_images
from resnet_ft.data.sample import make_sample_dataset
from resnet_ft.errors import DatasetError
from resnet_ft.files import atomic_write, fingerprint


def stage_dataset(
    source: str | Path, destination: str | Path = "data", *, workers: int = 32
) -> Path:
    """Bring a data set to local disk and return the folder that holds it.

    `source` is a folder, a .zip or .tar(.gz, .xz, .bz2) archive, or "sample" for the data set that
    the library draws itself. A folder on local disk is used where it is. A folder on Google Drive
    is copied below `destination` by `workers` threads: its folders and images, and the copy is kept
    equal to what is on Drive. An archive is unpacked there. Running again is cheap: what is there
    already is not fetched again. An archive that would write outside its folder, or that cannot be
    read, is refused with a DatasetError and leaves nothing behind.
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
            f'({", ".join(ARCHIVES)}) or "sample". If it is on Drive, is Drive mounted?'
        )
    stem, status = archive_stem(source), source.stat()
    identity = fingerprint([source.absolute(), status.st_size, status.st_mtime_ns])
    return _stage_once(
        destination / f"{stem}-{identity[:8]}", lambda folder: unpack(source, folder)
    )


def _stage_once(target: Path, fill: Callable[[Path], object]) -> Path:
    """Fill a temporary folder and rename it, so that `target` is complete as soon as it exists."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            fill(unfinished)
            unfinished.chmod(0o755)  # mkdtemp makes folders for one's own eyes
            unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _copy_folder(source: Path, destination: Path, workers: int) -> Path:
    """Make the copy hold the folders and images of `source`, and no image that it lacks."""
    target = destination / f"{source.name}-{fingerprint([source.absolute()])[:8]}"
    images = {}
    for folder, files in walk_images(source):
        (target / folder.relative_to(source)).mkdir(parents=True, exist_ok=True)
        images.update({target / path.relative_to(source): path for path in files})
    with ThreadPoolExecutor(workers) as pool:
        copies = pool.map(_copy, images.values(), images.keys())
        for _ in tqdm(copies, total=len(images), desc="Copying", unit="image"):
            pass
    for path in set(find_images(target)) - set(images):
        path.unlink()  # moved or deleted at the source: a copy would be a wrong label or a leak
    return target


def _copy(path: Path, copied: Path) -> None:
    try:
        if not copied.exists() or _size_and_time(copied) != _size_and_time(path):
            with atomic_write(copied) as temporary:
                shutil.copy2(path, temporary)
    except OSError as error:
        raise DatasetError(
            f"{path} could not be copied to {copied.parent}: {error.strerror or error}. Run it "
            "again; if it fails again, mount Drive anew, and see that the disk is not full."
        ) from error


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, round(status.st_mtime)
