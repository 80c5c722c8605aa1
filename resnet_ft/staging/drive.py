"""Google Drive in Colab, a local folder elsewhere, and whether a folder can be used."""

import shutil
import sys
import tempfile
import warnings
from pathlib import Path

from resnet_ft.errors import DriveError
from resnet_ft.files import user_path

_REMEDIES = {
    "mount failed": (
        "Google refused, or nobody answered. Run the cell again and press Connect in the window "
        "that opens; allow pop-ups for this page, and use the account that owns the files."
    ),
    "must not already contain files": (
        "Something was written to that folder before Drive was mounted. Choose another mount "
        "point, or move those files away (Runtime > Disconnect and delete runtime gives an empty "
        "machine)."
    ),
    "must not contain a space": "Choose a mount point without spaces, such as /content/drive.",
}


def mount_drive(mount_point: str | Path = "/content/drive", *, timeout_s: float = 120) -> Path:
    """Mount Google Drive in Colab and return its "My Drive" folder.

    Outside Colab it says that there is nothing to mount and returns `project_root()`, so that a
    relative path means the same place in every notebook. Raises DriveError with a remedy where
    Drive refuses or does not answer within `timeout_s` seconds.
    """
    if "google.colab" not in sys.modules:
        root = project_root()
        print(f"Not in Colab, so there is no Drive to mount: using the folder {root}")
        return root
    from google.colab import drive

    try:
        drive.mount(str(user_path(mount_point)), timeout_ms=round(timeout_s * 1000))
    except NotImplementedError as error:
        raise DriveError(
            f"Drive cannot be mounted on this runtime ({error}). Choose Runtime > Change runtime "
            "type and a hosted one, or give local folders as data_dir and runs_dir."
        ) from error
    except ValueError as error:
        reason = f"Drive could not be mounted at {mount_point}: {error}"
        remedy = next((text for key, text in _REMEDIES.items() if key in reason), "Run it again.")
        raise DriveError(f"{reason}. {remedy}") from error
    return user_path(mount_point) / "MyDrive"


def unmount_drive() -> None:
    """Wait until every written file has arrived in Google Drive, and unmount it.

    Colab uploads in the background: it loses what has not arrived when the machine is given back.
    Outside Colab it says that there is nothing to do. Raises DriveError where Drive refuses.
    """
    if "google.colab" not in sys.modules:
        print("Not in Colab, so there is no Drive to unmount: everything is on this disk")
        return
    from google.colab import drive

    try:
        drive.flush_and_unmount()
    except ValueError as error:
        raise DriveError(
            f"Drive could not be unmounted: {error}. Close what still uses it, check at "
            "drive.google.com that all files are there, and run it again."
        ) from error
    print("Everything has arrived in Google Drive, which is now unmounted")


def disconnect_runtime(folder: str | Path, mount_point: str | Path = "/content/drive") -> None:
    """Give Colab's machine back, once every file below `folder` has arrived in Google Drive.

    Drive is unmounted, which waits for all that was written, and mounted again: only if every file
    is there in its full size, the machine is given back. Outside Colab it says that there is
    nothing to do. Raises DriveError, and keeps the machine, where a file is missing.
    """
    if "google.colab" not in sys.modules:
        print("Not in Colab, so there is no machine to give back")
        return
    from google.colab import runtime

    folder = user_path(folder)
    written = _sizes(folder)
    unmount_drive()
    mount_drive(mount_point)
    arrived = _sizes(folder)
    missing = [name for name, size in written.items() if arrived.get(name) != size]
    if missing:
        raise DriveError(
            f"{len(missing)} of {len(written)} files below {folder} have not arrived in Google "
            f"Drive: {', '.join(missing[:5])}. This machine is kept. Is Drive full? Make room, run "
            "the notebook again, and check at drive.google.com."
        )
    print(f"All {len(written)} files are in Google Drive. This machine is given back.")
    runtime.unassign()


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def project_root() -> Path:
    """The folder that relative paths start from: the checkout, or else the working directory.

    Jupyter works in the folder of the notebook and papermill in the one where it was started; this
    is the same for both. In Colab, where there is no checkout, it is /content.
    """
    here, library = Path.cwd(), Path(__file__).resolve().parents[2]
    for folder in (here, *here.parents, library):
        if (folder / "notebooks" / "01_mount_drive.ipynb").is_file():
            return folder
    return here


def check_storage(
    folder: str | Path, *, write: bool = True, needed_gib: float = 0.0
) -> dict[str, object]:
    """Try a folder; return what was checked and how much space is left there, in GiB.

    With `write`, a missing folder is made, and a small file is written, read back and removed.
    Raises DriveError where the folder cannot be written to or read; warns where less than
    `needed_gib` is free.
    """
    folder = user_path(folder)
    try:
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"resnet_ft")
                probe.seek(0)
                probe.read()
        any(folder.iterdir())
        free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        action = "written to" if write else "read"
        raise DriveError(
            f"{folder} cannot be {action}: {error.strerror or error}. Check the path and its "
            "permissions; if it is on Drive, mount Drive again and check that its storage is not "
            "full."
        ) from error
    if free < needed_gib:
        warnings.warn(
            f"{folder} has {free:.1f} GiB left, and {needed_gib:.1f} GiB will be needed. Make room "
            "there, or choose another folder.",
            stacklevel=2,
        )
    checked = "read and written" if write else "read"
    return {"folder": str(folder), "can be": checked, "free GiB": round(free, 1)}
