import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import webdataset
from conftest import ROOT, write_image
from PIL import Image

from resnet_ft import (
    DatasetError,
    ParameterError,
    index_dataset,
    make_dataloaders,
    pack_dataset,
    stage_dataset,
)


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


def test_a_file_that_already_holds_the_data_set_is_left_as_it_is(photos, tmp_path, capsys):
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
    for folder, message in (("empty", "no images in .*empty"), ("nowhere", "nowhere cannot be")):
        with pytest.raises(DatasetError, match=message):
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


def samples(folder: Path, split: str) -> list[dict]:
    shards = sorted(str(path) for path in folder.glob(f"{split}-*.tar"))
    return list(webdataset.WebDataset(shards, shardshuffle=False))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_webdataset_library_reads_what_is_written(photos, tmp_path):
    shards = pack_dataset(photos, tmp_path / "shards", max_shard_mb=0.03)
    found = samples(shards, "train")
    assert len(found) == 17 and len(samples(shards, "val")) == 6
    for sample in found:
        path = photos / f"{sample['__key__']}.png"
        assert sample["png"] == path.read_bytes()
        assert sample["cls"] == (b"1" if path.parent.name == "red" else b"0")


def test_dataset_json_counts_what_is_in_the_shards(photos, tmp_path):
    shards = pack_dataset(photos, tmp_path / "shards", max_shard_mb=0.03)
    described = json.loads((shards / "dataset.json").read_text())
    assert described["classes"] == ["blue", "red"]
    assert described["fingerprint"] == index_dataset(photos).fingerprint()
    listed = [shard for split in described["splits"].values() for shard in split]
    assert {shard["name"] for shard in listed} == set(files(shards)) - {"dataset.json"}
    for shard in listed:
        assert shard["bytes"] == (shards / shard["name"]).stat().st_size <= 30_000 + 10_240
    assert sum(shard["samples"] for shard in described["splits"]["train"]) == 17


def test_no_shard_is_of_one_class(tmp_path):
    for name in ("blue", "red"):
        for i in range(30):
            write_image(tmp_path / "photos" / "Train" / name / f"{i}.png", (8, 8))
        write_image(tmp_path / "photos" / "Val" / name / "0.png", (8, 8))
    shards = pack_dataset(tmp_path / "photos", tmp_path / "shards", max_shard_mb=0.03)
    assert len(list(shards.glob("train-*.tar"))) > 2
    for shard in shards.glob("train-*.tar"):
        classes = Counter(
            sample["cls"] for sample in webdataset.WebDataset(str(shard), shardshuffle=False)
        )
        assert len(classes) == 2


def test_keys_are_unique_whatever_files_are_called(tmp_path):
    names = ["a.png", "a.jpg", "a_.png", "v1.2.png", "v1_2.png", "ä" * 60 + ".png"]
    names.append("n" * 150 + ".png")
    for name in names:
        write_image(tmp_path / "photos" / "Train" / "red.or.so" / name)
    for name in ("Train/blue", "Val/blue", "Val/red.or.so"):
        write_image(tmp_path / "photos" / name / "0.png")
    shards = pack_dataset(tmp_path / "photos", tmp_path / "shards", max_shard_mb=1)
    keys = [sample["__key__"] for sample in samples(shards, "train")]
    assert len(set(keys)) == len(keys) == len(names) + 1
    assert not any("." in key for key in keys)


def test_equal_data_sets_make_equal_shards(photos, tmp_path):
    first = files(pack_dataset(photos, tmp_path / "a", max_shard_mb=0.03))
    for path in photos.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    assert files(pack_dataset(photos, tmp_path / "b", max_shard_mb=0.03)) == first


def test_shards_that_exist_already_are_left_as_they_are(photos, tmp_path, capsys):
    shards = pack_dataset(photos, tmp_path / "shards", max_shard_mb=0.03)
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert pack_dataset(photos, shards, max_shard_mb=0.03) == shards
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before
    assert "already holds shards of" in capsys.readouterr().out


def test_a_folder_of_anything_else_is_never_written_to(photos, tmp_path):
    shards = pack_dataset(photos, tmp_path / "shards", max_shard_mb=0.03)
    before = files(shards)
    with pytest.raises(DatasetError, match="holds something other than shards of"):
        pack_dataset(photos, shards, max_shard_mb=100)
    write_image(photos / "Train" / "red" / "new.png")
    with pytest.raises(DatasetError, match="holds something other than shards of"):
        pack_dataset(photos, shards, max_shard_mb=0.03)
    assert files(shards) == before
    with pytest.raises(DatasetError, match=r"holds something other.*another name"):
        pack_dataset(photos, photos, max_shard_mb=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "shards"]


def test_an_unreadable_image_is_left_out_of_the_shards_and_named(photos, tmp_path):
    (photos / "Train" / "red" / "broken.jpg").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1 of 24 files cannot be read.*\n.*broken\.jpg"):
        shards = pack_dataset(photos, tmp_path / "shards", max_shard_mb=0.03)
    assert len(samples(shards, "train")) == 17


def test_decisions_about_single_images_are_applied(photos, tmp_path):
    decisions = [("Train/red/0.png", "exclude", ""), ("Train/red/1.png", "relabel", "blue")]
    table = pd.DataFrame(decisions, columns=["path", "decision", "value"])
    shards = pack_dataset(photos, tmp_path / "shards", max_shard_mb=1, decisions=table)
    labels = {sample["__key__"]: sample["cls"] for sample in samples(shards, "train")}
    assert "Train/red/0" not in labels
    assert labels["Train/red/1"] == b"0" and labels["Train/red/2"] == b"1"


def test_options_that_do_not_go_together_are_refused(photos, tmp_path):
    with pytest.raises(ParameterError, match="should be positive"):
        pack_dataset(photos, tmp_path / "shards", max_shard_mb=0)
    with pytest.raises(ParameterError, match="a folder for shards"):
        pack_dataset(photos, tmp_path / "shards.tar", max_shard_mb=1)
    with pytest.raises(ParameterError, match="decisions go with max_shard_mb"):
        pack_dataset(photos, tmp_path / "all.tar", decisions=pd.DataFrame())
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_without_the_webdataset_library_the_remedy_is_named(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DatasetError, match="pip install webdataset"):
        pack_dataset(photos, tmp_path / "shards", max_shard_mb=1)


def test_a_call_that_was_killed_is_resumed(photos, tmp_path):
    for i in range(60):
        write_image(photos / "Train" / "blue" / f"more{i}.png", (400, 300))
    expected = files(pack_dataset(photos, tmp_path / "undisturbed", max_shard_mb=0.5))
    folder, begun = tmp_path / "shards", tmp_path / ".shards.unfinished"
    code = (
        f"from resnet_ft import pack_dataset; "
        f"pack_dataset({str(photos)!r}, {str(folder)!r}, max_shard_mb=0.5)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not list(begun.rglob("train-*1.tar")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not folder.exists()
    kept = {path: path.stat().st_mtime_ns for path in begun.glob("download/*/*.tar")}
    pack_dataset(photos, folder, max_shard_mb=0.5)
    assert files(folder) == expected
    assert kept and all((folder / path.name).stat().st_mtime_ns == kept[path] for path in kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "shards", "undisturbed"]


def test_images_of_every_format_and_without_extension_become_shards(photos, tmp_path):
    image = Image.open(photos / "Train/red/0.png")
    image.save(photos / "Train/red/portable.ppm")
    image.save(photos / "Train/red/IMG 0001", "JPEG")
    shards = pack_dataset(photos, tmp_path / "shards", max_shard_mb=1)
    loaders = make_dataloaders(shards, image_size=16, num_workers=0)
    assert sum(len(labels) for _, labels in loaders["train"]) == 19
