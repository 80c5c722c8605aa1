import os
import tarfile
import warnings

import pytest
from conftest import write_image

from resnet_ft import DatasetError, index_dataset, stage_dataset
from resnet_ft.staging.pack import pack_dataset


def tree(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_packed_data_set_stages_back_to_an_equal_one(photos, tmp_path):
    (tmp_path / "MyDrive").mkdir()
    staged = stage_dataset(photos.rename(tmp_path / "MyDrive" / "photos"), tmp_path / "local")
    packed = pack_dataset(staged, tmp_path / "MyDrive" / "sets" / "photos.tar")
    assert packed == tmp_path / "MyDrive" / "sets" / "photos.tar"
    assert [path.name for path in packed.parent.iterdir()] == ["photos.tar"]
    back = stage_dataset(packed, tmp_path / "local")
    assert tree(back) == tree(staged)
    assert index_dataset(back).counts().equals(index_dataset(staged).counts())


def test_it_holds_images_in_their_folders_and_nothing_else(photos, tmp_path):
    (photos / "Train" / "red" / ".hidden.png").touch()
    (photos / ".manifest.jsonl").touch()
    (photos / "notes.txt").touch()
    (photos / "Train" / "red" / "link.png").symlink_to(photos / "Train" / "red" / "0.png")
    (photos / "Train" / "empty").mkdir()
    with tarfile.open(pack_dataset(photos, tmp_path / "a.tar"), "r:") as file:
        files = {info.name for info in file if info.isfile()}
        folders = {info.name for info in file if info.isdir()}
        assert len(files) + len(folders) == len(file.getmembers())
    splits = {"Train", "Train/blue", "Train/red", "Train/empty", "Val", "Val/blue", "Val/red"}
    assert folders == splits
    images = {str(path.relative_to(photos)) for path in photos.glob("*/*/[!.]*.png")}
    assert files == images and len(files) == 24


def test_equal_data_sets_make_equal_files(photos, tmp_path):
    first = pack_dataset(photos, tmp_path / "a.tar").read_bytes()
    for path in photos.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o600)
    assert pack_dataset(photos, tmp_path / "b.tar").read_bytes() == first
    write_image(photos / "Train" / "red" / "new.png")
    assert pack_dataset(photos, tmp_path / "c.tar").read_bytes() != first


def test_a_file_that_holds_the_data_set_already_is_left_as_it_is(photos, tmp_path, capsys):
    packed = pack_dataset(photos, tmp_path / "a.tar")
    before = packed.stat()
    assert pack_dataset(photos, packed) == packed
    after = packed.stat()  # but for the time of the last access: it was read
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert "already holds the images of" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["add", "remove", "rename", "replace"])
def test_a_file_that_holds_anything_else_is_never_overwritten(photos, tmp_path, change):
    packed = pack_dataset(photos, tmp_path / "a.tar")
    before = packed.read_bytes()
    image = photos / "Train" / "red" / "0.png"
    if change == "add":
        write_image(photos / "Train" / "red" / "new.png")
    elif change == "remove":
        image.unlink()
    elif change == "rename":
        image.rename(photos / "Train" / "blue" / "was red.png")
    else:
        content = image.read_bytes()
        image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DatasetError, match=r"a.tar exists and holds something other.*another name"):
        pack_dataset(photos, packed)
    assert packed.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"my thesis", bytes(20480)])
def test_a_file_that_is_no_archive_is_never_overwritten(photos, tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DatasetError, match="exists and holds something other"):
        pack_dataset(photos, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == content


def test_what_cannot_be_packed_is_said(photos, tmp_path):
    with pytest.raises(DatasetError, match=r"should be called something\.tar"):
        pack_dataset(photos, tmp_path / "a.zip")
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        with pytest.raises(DatasetError, match=f"no images in .*{folder}"):
            pack_dataset(tmp_path / folder, tmp_path / "a.tar")
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"could not be packed to .*file/a\.tar"):
        pack_dataset(photos, tmp_path / "file" / "a.tar")
    assert not (tmp_path / "a.tar").exists()


def test_what_a_killed_call_left_is_removed(photos, tmp_path):
    (tmp_path / "out" / ".a.tar.unfinished").mkdir(parents=True)
    (tmp_path / "out" / ".a.tar.unfinished" / "a.tar").write_bytes(b"half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack_dataset(photos, tmp_path / "out" / "a.tar")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.tar"]
