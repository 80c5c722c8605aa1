import sys
import types

import pytest

from resnet_ft import (
    DriveError,
    check_storage,
    disconnect_runtime,
    mount_drive,
    project_root,
    unmount_drive,
)


@pytest.fixture
def colab(monkeypatch):
    """A google.colab whose drive.mount does what a test tells it to."""
    calls = []
    drive = types.ModuleType("google.colab.drive")

    def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
        calls.append((mountpoint, timeout_ms))
        if drive.error:
            raise drive.error

    def flush_and_unmount(timeout_ms=24 * 60 * 60 * 1000):
        calls.append("unmounted")
        if drive.error:
            raise drive.error

    drive.mount, drive.error, drive.calls = mount, None, calls
    drive.flush_and_unmount = flush_and_unmount
    runtime = types.ModuleType("google.colab.runtime")
    runtime.unassign = lambda: calls.append("given back")
    colab = types.ModuleType("google.colab")
    colab.drive, colab.runtime = drive, runtime
    google = types.ModuleType("google")
    google.colab = colab
    for name, module in {
        "google": google,
        "google.colab": colab,
        "google.colab.drive": drive,
        "google.colab.runtime": runtime,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return drive


def test_outside_colab_the_project_folder_takes_the_place_of_drive(capsys):
    assert mount_drive() == project_root()
    assert "Not in Colab" in capsys.readouterr().out


def test_in_colab_drive_is_mounted_and_my_drive_returned(colab, tmp_path):
    assert mount_drive(tmp_path, timeout_s=7.5) == tmp_path / "MyDrive"
    assert colab.calls == [(str(tmp_path), 7500)]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ValueError("mount failed: timeout"), "press Connect"),
        (ValueError("Mountpoint must not already contain files"), "another mount point"),
        (ValueError("Mountpoint must not contain a space"), "without spaces"),
        (ValueError("something new"), "Run it again"),
        (NotImplementedError("no Drive here"), "Change runtime type"),
    ],
)
def test_a_failed_mount_says_what_to_do(colab, error, remedy):
    colab.error = error
    with pytest.raises(DriveError, match=remedy) as raised:
        mount_drive()
    assert str(error) in str(raised.value)


def test_unmounting_waits_until_all_has_arrived(colab, capsys):
    unmount_drive()
    assert colab.calls == ["unmounted"]
    assert "has arrived" in capsys.readouterr().out
    colab.error = ValueError("drive is busy")
    with pytest.raises(DriveError, match=r"drive is busy.*drive.google.com"):
        unmount_drive()


def test_outside_colab_there_is_nothing_to_unmount(capsys):
    unmount_drive()
    assert "everything is on this disk" in capsys.readouterr().out


def test_the_project_root_is_the_same_from_jupyter_papermill_and_elsewhere(monkeypatch, tmp_path):
    root = project_root()
    for folder in (root, root / "notebooks", tmp_path):
        monkeypatch.chdir(folder)
        assert project_root() == root
    assert (root / "notebooks" / "03_train.ipynb").is_file()


def test_storage_is_tried_by_writing_and_leaves_nothing(tmp_path):
    found = check_storage(tmp_path / "new")
    assert found["can be"] == "read and written"
    assert 0 < found["free GiB"] < 1e6
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DriveError, match=r"file.* cannot be written to.*Check the path"):
        check_storage(tmp_path / "file")
    with pytest.raises(DriveError, match="missing cannot be read"):
        check_storage(tmp_path / "missing", write=False)
    assert not (tmp_path / "missing").exists()


def test_the_machine_is_given_back_when_all_is_in_drive(colab, tmp_path, capsys):
    (tmp_path / "best.pt").write_bytes(b"weights")
    disconnect_runtime(tmp_path, "/content/drive")
    assert colab.calls == ["unmounted", ("/content/drive", 120000), "given back"]
    assert "All 1 files are in Google Drive" in capsys.readouterr().out


def test_the_machine_is_kept_where_a_file_has_not_arrived(colab, tmp_path):
    (tmp_path / "best.pt").write_bytes(b"weights")

    def flush_and_unmount():
        (tmp_path / "best.pt").write_bytes(b"wei")

    colab.flush_and_unmount = flush_and_unmount
    with pytest.raises(DriveError, match=r"1 of 1 files .* have not arrived .*best\.pt"):
        disconnect_runtime(tmp_path)
    assert "given back" not in colab.calls


def test_outside_colab_there_is_no_machine_to_give_back(tmp_path, capsys):
    disconnect_runtime(tmp_path)
    assert "no machine to give back" in capsys.readouterr().out


def test_a_folder_with_too_little_space_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"GiB left, and 9999999\.0 GiB will be needed"):
        check_storage(tmp_path, needed_gib=9_999_999)
