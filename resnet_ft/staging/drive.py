"""Google Drive in Colab, a local folder elsewhere, and whether a folder can be used."""

import shutil
import sys
import tempfile
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


def check_storage(folder: str | Path, *, write: bool = True) -> dict[str, object]:
    """Try a folder; return what was checked and how much space is left there, in GiB.

    With `write`, a missing folder is made, and a small file is written, read back and removed.
    Raises DriveError where the folder cannot be written to or read.
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
    checked = "read and written" if write else "read"
    return {"folder": str(folder), "can be": checked, "free GiB": round(free, 1)}
