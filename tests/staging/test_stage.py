import os
import tarfile
import zipfile

import pytest
from conftest import write_image

from resnet_ft import DatasetError, ParameterError, index_dataset, stage_dataset


def make_archive(photos, path):
    """`photos` as an archive of the kind that the name of `path` says."""
    files = [file for file in photos.rglob("*") if file.is_file()]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(photos.parent))
    else:
        kind = path.suffix.removeprefix(".").replace("tgz", "gz").replace("tar", "")
        with tarfile.open(path, f"w:{kind}") as archive:
            for file in files:
                archive.add(file, file.relative_to(photos.parent))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.tar.bz2"])
def test_an_archive_is_unpacked_once(photos, tmp_path, name):
    archive = make_archive(photos, tmp_path / name)
    staged = stage_dataset(archive, tmp_path / "local")
    assert index_dataset(staged).counts().equals(index_dataset(photos).counts())
    marker = staged / "marker"
    marker.touch()
    assert stage_dataset(archive, tmp_path / "local") == staged
    assert marker.exists()
    assert [path.name for path in (tmp_path / "local").iterdir()] == [staged.name]


def test_a_changed_archive_of_the_same_name_is_staged_again(photos, tmp_path):
    first = stage_dataset(make_archive(photos, tmp_path / "a.zip"), tmp_path / "local")
    write_image(photos / "Train" / "red" / "new.png")
    second = stage_dataset(make_archive(photos, tmp_path / "a.zip"), tmp_path / "local")
    assert second != first
    assert index_dataset(second).counts()["train"]["red"] == 9


def test_a_local_folder_is_used_where_it_is(photos, tmp_path):
    assert stage_dataset(photos, tmp_path / "local") == photos
    assert not (tmp_path / "local").exists()


def test_a_folder_on_drive_is_copied_and_topped_up(photos, tmp_path):
    on_drive = tmp_path / "MyDrive" / "photos"
    on_drive.parent.mkdir()
    photos.rename(on_drive)
    staged = stage_dataset(on_drive, tmp_path / "local")
    assert staged.parent == tmp_path / "local"
    before = {path: path.stat().st_mtime_ns for path in staged.rglob("*.png")}
    assert len(before) == 23
    write_image(on_drive / "Train" / "red" / "new.png")
    next(iter(before)).write_bytes(b"half a fi")
    assert stage_dataset(on_drive, tmp_path / "local") == staged
    assert len(list(staged.rglob("*.png"))) == 24
    for file in on_drive.rglob("*.png"):
        assert (staged / file.relative_to(on_drive)).read_bytes() == file.read_bytes()
    unchanged = [path for path in list(before)[1:] if path.stat().st_mtime_ns == before[path]]
    assert len(unchanged) == 22


def test_the_copy_follows_what_is_moved_deleted_or_replaced_on_drive(photos, tmp_path):
    on_drive = tmp_path / "MyDrive" / "photos"
    on_drive.parent.mkdir()
    photos.rename(on_drive)
    staged = stage_dataset(on_drive, tmp_path / "local")
    (on_drive / "Train" / "red" / "0.png").rename(on_drive / "Train" / "blue" / "was red.png")
    (on_drive / "Val" / "red" / "0.png").unlink()
    replaced = on_drive / "Train" / "red" / "1.png"
    replaced.write_bytes(bytes(reversed(replaced.read_bytes())))
    os.utime(replaced, (2e9, 2e9))
    assert stage_dataset(on_drive, tmp_path / "local") == staged
    for folder, other in ((staged, on_drive), (on_drive, staged)):
        for file in folder.rglob("*.png"):
            assert (other / file.relative_to(folder)).read_bytes() == file.read_bytes()


def test_an_empty_class_folder_on_drive_is_copied_so_that_it_can_be_refused(photos, tmp_path):
    (tmp_path / "MyDrive").mkdir()
    on_drive = photos.rename(tmp_path / "MyDrive" / "photos")
    (on_drive / "Train" / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty holds no images"):
        index_dataset(stage_dataset(on_drive, tmp_path / "local"))


def test_a_repeated_and_a_linked_entry_of_a_tar_are_unpacked(photos, tmp_path):
    archive = make_archive(photos, tmp_path / "a.tar")
    with tarfile.open(archive, "a") as file:
        file.add(photos / "Train" / "red" / "1.png", "photos/Train/red/0.png")
        link = tarfile.TarInfo("photos/Train/red/hard.png")
        link.type, link.linkname = tarfile.LNKTYPE, "photos/Train/red/2.png"
        file.addfile(link)
    red = stage_dataset(archive, tmp_path / "local") / "photos" / "Train" / "red"
    assert (red / "0.png").read_bytes() == (photos / "Train" / "red" / "1.png").read_bytes()
    assert (red / "hard.png").read_bytes() == (photos / "Train" / "red" / "2.png").read_bytes()


def test_the_sample_is_drawn_once(tmp_path):
    staged = stage_dataset("sample", tmp_path)
    time = staged.stat().st_mtime_ns
    assert stage_dataset("sample", tmp_path).stat().st_mtime_ns == time
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
    assert index_dataset(staged).classes == ["balloon", "fish", "flower", "mushroom"]


def test_what_is_no_data_set_is_named_with_the_remedy(tmp_path):
    with pytest.raises(DatasetError, match=r"no data set at .*nowhere.*is Drive mounted"):
        stage_dataset(tmp_path / "nowhere", tmp_path / "local")
    (tmp_path / "photos.rar").touch()
    with pytest.raises(DatasetError, match=r"photos.rar cannot be unpacked.*\.zip"):
        stage_dataset(tmp_path / "photos.rar", tmp_path / "local")


def test_a_destination_that_cannot_be_written_is_named(photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"could not be staged in .*file.*Is the disk full"):
        stage_dataset(make_archive(photos, tmp_path / "a.zip"), tmp_path / "file")


@pytest.mark.parametrize("source", [None, "", 3])
def test_a_source_that_is_none_is_refused_by_name(source, tmp_path):
    with pytest.raises(ParameterError, match=f"source={source!r} should be a folder"):
        stage_dataset(source, tmp_path / "data", relative_to=tmp_path)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("photos/hymenoptra", "photos/hymenoptera"),
        ("photo/hymenoptera", "photos/hymenoptera"),
        ("Photos/Hymenoptera.zip", "photos/hymenoptera"),
        ("hymenoptera", "photos/hymenoptera"),
        ("flowers.tar", "flowers.zip"),
        ("sampel", "sample"),
    ],
)
def test_a_folder_that_is_not_there_may_be_one_of_another_name(photos, tmp_path, wrong, meant):
    drive = tmp_path / "drive"
    (drive / "photos").mkdir(parents=True)
    photos.rename(drive / "photos" / "hymenoptera")
    (drive / "flowers.zip").touch()
    with pytest.raises(DatasetError) as raised:
        stage_dataset(wrong, tmp_path / "local", relative_to=drive)
    assert f"no data set at {drive / wrong}. Did you mean {meant}? It should" in str(raised.value)


def test_where_no_name_is_like_it_the_data_sets_there_are_named(photos, tmp_path):
    drive = tmp_path / "drive"
    (drive / "documents").mkdir(parents=True)
    photos.rename(drive / "documents" / "insects")
    with pytest.raises(DatasetError, match=r"Data sets there: documents/insects\. It"):
        stage_dataset("my pictures", tmp_path / "local", relative_to=drive)
    with pytest.raises(DatasetError, match=r"no data set at \S+/nothing/here\. It should"):
        stage_dataset("here", tmp_path / "local", relative_to=tmp_path / "nothing")
