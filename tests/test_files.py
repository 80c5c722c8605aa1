import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import write_image

from resnet_ft import (
    Predictor,
    Run,
    audit_dataset,
    build_model,
    check_storage,
    decisions_file,
    evaluate,
    index_dataset,
    load_predictions,
    make_dataloaders,
    open_image,
    pack_dataset,
    read_decisions,
    save_checkpoint,
    stage_dataset,
)
from resnet_ft.data.decisions import DecisionLog
from resnet_ft.files import (
    DiskBudget,
    atomic_write,
    default_cache_dir,
    fingerprint,
    is_on_drive,
    rewrite,
    user_path,
)


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    with atomic_write(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("all of it")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:
        temporary.write_text("ha")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_on_drive_is_overwritten_since_what_is_replaced_fills_the_trash(tmp_path):
    for place, stays in (("MyDrive", True), ("local", False)):
        target = tmp_path / place / "a.txt"
        files = []
        for text in ("first", "second and longer", "3rd"):
            with rewrite(target) as temporary:
                temporary.write_text(text)
            assert target.read_text() == text
            files.append(target.stat().st_ino)
        assert (len(set(files)) == 1) == stays
        assert list(target.parent.iterdir()) == [target]


def test_my_drive_and_shared_drives_are_known():
    assert is_on_drive("/content/drive/MyDrive/photos")
    assert is_on_drive("/content/drive/Shareddrives/team/photos")
    assert not is_on_drive("/content/data/photos")


def test_a_fingerprint_tells_parts_from_their_concatenation():
    assert fingerprint(["ab", "c"]) == fingerprint(["ab", "c"])
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])


def test_the_cache_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "resnet_ft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "resnet_ft"


GIB = 2**30


@pytest.fixture
def cache(tmp_path):
    """Four files of 100 bytes, "0" the least recently used, and one of another kind."""
    for age, name in enumerate(("3", "2", "1", "0")):
        (tmp_path / f"{name}.part").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.part", (1e9 - age, 1e9 - age))
    (tmp_path / "index").write_bytes(bytes(1000))
    return tmp_path


def names(folder):
    return sorted(path.stem for path in folder.glob("*.part"))


def test_the_least_recently_used_files_make_room(cache):
    budget = DiskBudget(cache, "*.part", 400 / GIB)
    assert (budget.used, budget.limit) == (400, 400)
    assert budget.make_room(150)
    assert names(cache) == ["2", "3"] and budget.used == 200
    assert budget.make_room(200)
    assert names(cache) == ["2", "3"]


def test_files_in_use_stay_even_if_there_is_too_little_room(cache):
    budget = DiskBudget(cache, "*.part", 300 / GIB)
    assert not budget.make_room(300, in_use=[cache / "0.part", cache / "2.part"])
    assert names(cache) == ["0", "2"]


def test_a_budget_leaves_room_on_the_disk(cache):
    free = shutil.disk_usage(cache).free
    usable = 400 + max(0, free - GIB)
    near = {"abs": 0.1 * GIB}  # others write to this disk meanwhile
    assert DiskBudget(cache, "*.part").limit == pytest.approx(usable, **near)
    assert DiskBudget(cache, "*.part", share=0.5).limit == pytest.approx(usable / 2, **near)
    assert DiskBudget(cache, "*.part", 1e9).limit == pytest.approx(usable, **near)
    assert DiskBudget(cache, "*.part", 0).limit == 0


def test_a_file_that_was_deleted_is_not_counted_again(cache):
    budget = DiskBudget(cache, "*.part", 400 / GIB)
    assert budget.make_room(150)
    assert budget.make_room(350)
    assert names(cache) == [] and budget.used == 0


def test_a_tilde_is_the_home_folder_wherever_a_path_enters(photos, tmp_path, monkeypatch):
    (home := tmp_path / "home").mkdir()
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    photos.rename(home / "photos")
    write_image(home / "photos.png")

    assert index_dataset("~/photos").root == home / "photos"
    assert audit_dataset("~/photos", cache_dir="~/cache").root == home / "photos"
    assert (home / "cache" / "facts.sqlite3").exists()
    loaders = make_dataloaders("~/photos", batch_size=4, cache_dir="~/cache", num_workers=0)
    assert (home / "cache" / "images").is_dir()
    assert pack_dataset("~/photos", "~/photos.tar") == home / "photos.tar"
    pack_dataset("~/photos", "~/shards", max_shard_mb=1)
    assert make_dataloaders("~/shards", batch_size=4, num_workers=0)["train"]
    staged = stage_dataset("~/photos.tar", "~/local")
    assert staged.parent == home / "local"
    assert stage_dataset("photos", relative_to="~") == home / "photos"
    assert open_image("~/photos.png").size
    assert check_storage("~/new")["folder"] == str(home / "new")
    decisions = decisions_file("~/runs", "~/photos")
    assert decisions.parent == home / "runs"
    assert decisions == decisions_file(home / "runs", str(home / "photos"))
    log = DecisionLog("~/runs/log.csv")
    log.decide("Train/red/0.png", "exclude")
    assert len(read_decisions("~/runs/log.csv")) == 1

    run = Run.open("~/runs/x", {"seed": 0}, decisions="~/runs/log.csv")
    assert run.decisions.read_bytes() == (home / "runs" / "log.csv").read_bytes()
    model = build_model("resnet18", 2, weights=None)
    torch.save(model.state_dict(), home / "weights.pth")
    build_model("resnet18", 2, weights="~/weights.pth")
    classes = loaders["train"].dataset.classes
    shown = loaders["train"].dataset.preprocessing
    saved = save_checkpoint("~/best.pt", model, classes=classes, preprocessing=shown)
    assert saved == home / "best.pt"
    predictor = Predictor.load("~/best.pt")
    table = predictor.predict_folder("~/photos/Val", "~/table.csv", num_workers=0)
    assert len(table) == 6 and (home / "table.csv").exists()
    predictions = evaluate(model, loaders["val"])
    assert predictions.save("~/runs/p.csv") == home / "runs" / "p.csv"
    assert load_predictions("~/runs/p.csv").classes == classes
    assert not list(elsewhere.iterdir())


def test_a_name_that_only_begins_with_a_tilde_is_a_name():
    assert user_path("~$photo.jpg") == Path("~$photo.jpg")
    assert user_path("a/~/b") == Path("a/~/b")
