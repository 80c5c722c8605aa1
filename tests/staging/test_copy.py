import csv
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from conftest import ROOT, write_image
from filelock import FileLock

from resnet_ft import DatasetError, index_dataset, stage_dataset


@pytest.fixture
def on_drive(photos, tmp_path) -> Path:
    """The images in a folder that counts as one on Drive."""
    (tmp_path / "MyDrive").mkdir()
    return photos.rename(tmp_path / "MyDrive" / "photos")


def images_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*.*") if not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def unreadable(path: Path) -> Path:
    """A file that is listed and opened, and whose reading gives EIO, as an ailing mount does."""
    path.symlink_to("/proc/self/mem")
    with pytest.raises(OSError) as raised:
        path.read_bytes()
    assert raised.value.errno == errno.EIO
    return path


def stage_elsewhere(source, destination, **options) -> subprocess.Popen:
    code = "import sys, resnet_ft; print(resnet_ft.stage_dataset(sys.argv[1], sys.argv[2]))"
    command = [sys.executable, "-c", code, str(source), str(destination)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, **options)


def test_the_copy_holds_the_same_images_and_nothing_else(on_drive, tmp_path):
    (on_drive / "notes.txt").write_text("not an image")
    (on_drive / "Train" / ".DS_Store").touch()
    write_image(tmp_path / "x.png").rename(on_drive / "Train" / "red" / "IMG 0001")
    with pytest.warns(UserWarning, match=r"no images are not copied \(1\): notes\.txt"):
        staged = stage_dataset(on_drive, tmp_path / "local")
    assert (staged / "Train" / "red" / "IMG 0001").is_file()
    (on_drive / "notes.txt").unlink()
    assert images_of(staged) == images_of(on_drive)
    assert len(images_of(staged)) == 23
    assert [path.name for path in (tmp_path / "local").iterdir()] == [staged.name]


def test_what_the_manifest_knows_is_not_read_again(on_drive, tmp_path):
    stage_dataset(on_drive, tmp_path / "local")
    original = on_drive / "Train" / "red" / "0.png"
    before = original.stat()
    content = original.read_bytes()
    original.write_bytes(bytes(reversed(content)))
    os.utime(original, ns=(before.st_atime_ns, before.st_mtime_ns))
    copied = stage_dataset(on_drive, tmp_path / "local") / "Train" / "red" / "0.png"
    assert copied.read_bytes() == content
    os.utime(original, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    stage_dataset(on_drive, tmp_path / "local")
    assert copied.read_bytes() == bytes(reversed(content))


def test_a_manifest_with_half_a_line_is_still_used(on_drive, tmp_path):
    staged = stage_dataset(on_drive, tmp_path / "local")
    manifest = staged / ".manifest.jsonl"
    *lines, last = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines) + last[:10])
    times = {path: path.stat().st_ctime_ns for path in staged.rglob("*.png")}
    stage_dataset(on_drive, tmp_path / "local")
    changed = [path for path, was in times.items() if path.stat().st_ctime_ns != was]
    assert [str(path.relative_to(staged)) for path in changed] == [json.loads(last)[0]]
    stage_dataset(on_drive, tmp_path / "local")
    assert len(manifest.read_bytes().splitlines()) == 24


@pytest.mark.slow
def test_what_cannot_be_read_is_named_and_listed_and_the_rest_is_usable(on_drive, tmp_path):
    broken = unreadable(on_drive / "Train" / "red" / "broken.png")
    (on_drive / "Train" / "red" / "gone.png").symlink_to(on_drive / "nowhere.png")
    os.mkfifo(on_drive / "Train" / "red" / "pipe.png")
    with pytest.warns(UserWarning, match=r"3 files .*red/broken\.png \(Input/output") as warned:
        staged = stage_dataset(on_drive, tmp_path / "local")
    assert warned[0].filename == __file__
    assert index_dataset(staged).counts()["train"]["red"] == 8
    with (staged / ".not_copied.csv").open() as table:
        rows = {row["file"]: row["reason"] for row in csv.DictReader(table)}
    assert rows == {
        "Train/red/broken.png": "Input/output error",
        "Train/red/gone.png": "it was listed, but is not there",
        "Train/red/pipe.png": "it is not a file",
    }
    for path in (broken, broken.with_name("gone.png"), broken.with_name("pipe.png")):
        path.unlink()
        write_image(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stage_dataset(on_drive, tmp_path / "local")
    assert index_dataset(staged).counts()["train"]["red"] == 11
    assert not (staged / ".not_copied.csv").exists()


def test_only_ten_failures_are_named(on_drive, tmp_path):
    for i in range(12):
        os.mkfifo(on_drive / f"{i:02}.png")
    with pytest.warns(UserWarning, match=r"12 files .*09\.png \(it is not a file\) and 2 more"):
        stage_dataset(on_drive, tmp_path / "local")


def test_a_listed_file_that_is_there_a_moment_later_is_copied(on_drive, tmp_path):
    late, real = on_drive / "Train" / "red" / "late.png", tmp_path / "real.png"
    late.symlink_to(real)
    write_image(tmp_path / "ready.png")
    timer = threading.Timer(0.5, lambda: (tmp_path / "ready.png").rename(real))
    timer.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        staged = stage_dataset(on_drive, tmp_path / "local")
    timer.join()
    assert (staged / "Train" / "red" / "late.png").read_bytes() == real.read_bytes()


def test_where_a_folder_cannot_be_listed_its_copies_stay(on_drive, tmp_path):
    red = (on_drive / "Train" / "red").rename(tmp_path / "red")
    (on_drive / "Train" / "red").symlink_to(red)
    staged = stage_dataset(on_drive, tmp_path / "local")
    before = images_of(staged)
    red.rename(tmp_path / "away")
    with pytest.warns(UserWarning, match="Train/red"):
        stage_dataset(on_drive, tmp_path / "local")
    assert images_of(staged) == before


def test_if_nothing_can_be_copied_it_says_why_and_leaves_nothing(tmp_path):
    (tmp_path / "MyDrive").mkdir()
    unreadable(tmp_path / "MyDrive" / "a.png")
    with pytest.raises(DatasetError, match=r"Nothing could be copied .*Input/output.*Mount Drive"):
        stage_dataset(tmp_path / "MyDrive", tmp_path / "local")
    assert list((tmp_path / "local").iterdir()) == []


def test_a_mount_that_is_lost_does_not_cost_a_wait_for_every_file(tmp_path):
    for i in range(256):
        (tmp_path / "MyDrive" / f"{i}.png").parent.mkdir(exist_ok=True)
        (tmp_path / "MyDrive" / f"{i}.png").symlink_to("/proc/self/mem")
    start = time.monotonic()
    with pytest.raises(DatasetError, match="and 246 more"):
        stage_dataset(tmp_path / "MyDrive", tmp_path / "local", workers=64)
    assert time.monotonic() - start < 14  # 64 threads would wait four times 4.2 seconds


def test_a_class_folder_that_was_renamed_is_renamed_in_the_copy(on_drive, tmp_path):
    staged = stage_dataset(on_drive, tmp_path / "local")
    for split in ("Train", "Val"):
        (on_drive / split / "red").rename(on_drive / split / "orange")
    stage_dataset(on_drive, tmp_path / "local")
    assert index_dataset(staged).classes == ["blue", "orange"]
    assert sorted(path.name for path in (staged / "Train").iterdir()) == ["blue", "orange"]


def test_a_link_to_a_folder_above_is_not_followed_for_ever(on_drive, tmp_path):
    (on_drive / "Train" / "again").symlink_to(on_drive)
    staged = stage_dataset(on_drive, tmp_path / "local")
    assert len(list(staged.rglob("*.png"))) == 23


def test_more_than_the_disk_holds_is_refused_before_anything_is_copied(on_drive, tmp_path):
    huge = on_drive / "Train" / "red" / "huge.png"
    huge.touch()
    os.truncate(huge, 2 * shutil.disk_usage(tmp_path).free)
    with pytest.raises(DatasetError, match=r"too small for .*: it needs .* GB.*max_side="):
        stage_dataset(on_drive, tmp_path / "local")
    assert not list((tmp_path / "local").rglob("*.png"))


def test_a_disk_that_gets_full_stops_the_copy_at_once(tmp_path):
    for i in range(40):
        (tmp_path / "MyDrive" / "red").mkdir(parents=True, exist_ok=True)
        (tmp_path / "MyDrive" / "red" / f"{i}.png").write_bytes(os.urandom(50_000))
    code = """
import sys, time, resnet_ft
start = time.monotonic()
try:
    resnet_ft.stage_dataset(sys.argv[1], "/mnt", max_side=64)
except resnet_ft.DatasetError as error:
    print(time.monotonic() - start < 2, error)
"""
    shell = 'mount -t tmpfs -o size=1m disk /mnt && "$@"'
    command = ["unshare", "-rm", "sh", "-c", shell, "sh", sys.executable, "-c", code]
    run = subprocess.run(
        [*command, str(tmp_path / "MyDrive")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if "unshare" in run.stderr or "mount:" in run.stderr:
        pytest.skip(f"no small disk can be mounted here: {run.stderr.splitlines()[0]}")
    assert run.stdout.startswith("True The disk of /mnt/")
    assert "No space left on device" in run.stdout


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_two_processes_that_stage_the_same_at_once_both_end_well(kind, on_drive, tmp_path):
    for i in range(300):
        shutil.copy(on_drive / "Train" / "red" / "0.png", on_drive / "Train" / "red" / f"c{i}.png")
    source, expected = on_drive, images_of(on_drive)
    if kind == "archive":
        source = shutil.make_archive(str(tmp_path / "photos"), "gztar", on_drive)
    both = [stage_elsewhere(source, tmp_path / "local") for _ in range(2)]
    printed = {process.communicate()[0].splitlines()[-1] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (staged,) = map(Path, printed)
    assert images_of(staged) == expected
    assert [path.name for path in (tmp_path / "local").iterdir()] == [staged.name]


def test_leftovers_of_killed_processes_are_removed_but_not_those_of_live_ones(on_drive, tmp_path):
    killed, live = (tmp_path / "local" / f".{name}.unfinished" for name in ("killed", "live"))
    for folder in (killed, live):
        (folder / "files").mkdir(parents=True)
        (folder / "files" / "0.png").touch()
    with FileLock(live / "lock"):
        stage_dataset(on_drive, tmp_path / "local")
        assert not killed.exists()
        assert (live / "files" / "0.png").exists()
    stage_dataset(on_drive, tmp_path / "local")
    assert not live.exists()


def test_a_call_that_waits_for_another_process_says_so(on_drive, tmp_path, capsys):
    staged = stage_dataset(on_drive, tmp_path / "local")
    locked, folder = threading.Event(), staged.with_name(f".{staged.name}.unfinished")

    def hold_lock():
        folder.mkdir()
        with FileLock(folder / "lock"):
            locked.set()
            time.sleep(0.5)

    other = threading.Thread(target=hold_lock)
    other.start()
    locked.wait()
    assert stage_dataset(on_drive, tmp_path / "local") == staged
    other.join()
    assert f"Another process is at work in {folder}" in capsys.readouterr().out
    assert not folder.exists()


def test_a_folder_is_not_copied_into_itself(photos):
    with pytest.raises(DatasetError, match="copied into itself"):
        stage_dataset(photos, photos / "Train" / "local", max_side=8)
