import os
import shutil
import unicodedata

import pytest
from conftest import shared_data, write_image

from resnet_ft import DatasetError, DatasetIndex, held_out_images, index_dataset


def dataset(folder, layout):
    """Images at "split/class/file" paths; a path that ends in a slash is an empty folder."""
    for path in layout:
        if path.endswith("/"):
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            write_image(folder / path, size=(4, 4))
    return folder


def both_classes(split):
    return [f"{split}/a/1.png", f"{split}/b/1.png"]


@pytest.mark.parametrize("train", ["Train", "train", "TRAIN", "training"])
@pytest.mark.parametrize("val", ["Val", "valid", "Validation"])
def test_splits_are_known_by_their_usual_names_in_any_case(tmp_path, train, val):
    index = index_dataset(dataset(tmp_path, both_classes(train) + both_classes(val)))
    assert index.counts().to_dict("list") == {"train": [1, 1], "val": [1, 1]}


def test_a_test_folder_is_a_third_split_and_replaces_a_missing_val(tmp_path):
    dataset(tmp_path, both_classes("Train") + both_classes("Test"))
    assert list(index_dataset(tmp_path).counts()) == ["train", "val"]
    dataset(tmp_path, both_classes("Val"))
    assert list(index_dataset(tmp_path).counts()) == ["train", "val", "test"]


def test_class_folders_alone_are_split_and_files_stay_in_their_split_when_others_are_added(
    tmp_path,
):
    dataset(tmp_path, [f"{name}/{i}.png" for name in "ab" for i in range(100)])
    before = index_dataset(tmp_path)
    assert 25 <= len(before.split("val")) <= 55  # 40 of 200 expected, standard deviation 5.7
    dataset(tmp_path, [f"{name}/new{i}.png" for name in "ab" for i in range(20)])
    after = index_dataset(tmp_path).table.set_index("path")["split"]
    assert (after[before.table["path"]].to_numpy() == before.table["split"]).all()


def test_a_train_folder_alone_is_split_too(tmp_path):
    index = index_dataset(dataset(tmp_path, [f"Train/{c}/{i}.png" for c in "ab" for i in range(9)]))
    assert list(index.counts()) == ["train", "val"]


def test_every_small_class_has_an_image_in_both_splits(tmp_path):
    names = [f"class{i}" for i in range(30)]
    counts = index_dataset(
        dataset(tmp_path, [f"{name}/{i}.png" for name in names for i in range(2)])
    ).counts()
    assert (counts == 1).all().all()


def test_hidden_and_system_files_are_neither_classes_nor_images(tmp_path):
    dataset(tmp_path, both_classes("Train") + both_classes("Val"))
    for junk in (".DS_Store", "Train/.DS_Store", "Train/a/Thumbs.db", "Train/a/._1.png"):
        (tmp_path / junk).write_bytes(b"junk")
    dataset(tmp_path, ["Train/.ipynb_checkpoints/1.png", "__MACOSX/Train/a/1.png"])
    (tmp_path / "Train" / "a" / "notes.txt").write_text("not an image")
    index = index_dataset(tmp_path)
    assert index.classes == ["a", "b"]
    assert len(index.table) == 4


def test_images_in_subfolders_and_linked_folders_belong_to_their_class(tmp_path):
    dataset(tmp_path / "data", both_classes("Train") + ["Train/a/more/deep/2.png"])
    dataset(tmp_path, ["elsewhere/3.png"])
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "Train" / "a" / "linked")
    os.symlink(tmp_path / "data" / "Train" / "a", tmp_path / "data" / "Train" / "a" / "loop")
    dataset(tmp_path / "data", both_classes("Val"))
    assert index_dataset(tmp_path / "data").counts()["train"].to_dict() == {"a": 3, "b": 1}


def test_a_class_that_is_a_link_to_nowhere_is_refused(tmp_path):
    dataset(tmp_path, [*both_classes("Train"), *both_classes("Val")])
    (tmp_path / "Train/c").symlink_to("/mnt/unmounted/c")
    with pytest.raises(DatasetError, match="Train/c leads to /mnt/unmounted/c, which is not there"):
        index_dataset(tmp_path)


def test_folders_that_only_wrap_the_data_are_skipped(tmp_path):
    layout = [f"export/photos/{path}" for path in both_classes("Train") + both_classes("Val")]
    index = index_dataset(dataset(tmp_path, layout))
    assert index.root == tmp_path / "export" / "photos"


def test_names_with_spaces_and_accents_work(tmp_path):
    layout = ["rosée d'été/a b.png", "rosée d'été/ü.png", "z/1.png", "z/2.png"]
    assert index_dataset(dataset(tmp_path, layout)).classes == ["rosée d'été", "z"]


def test_a_name_with_accents_is_the_same_in_both_spellings(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    layout = [f"Train/{composed}/1.png", "Train/tea/1.png", f"Val/{decomposed}/1.png"]
    index = index_dataset(dataset(tmp_path, layout))
    assert index.classes == [composed, "tea"]
    assert index.counts().loc[composed].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            [*both_classes("Train"), "Val/a/1.png", "Val/c/1.png"],
            "val has classes that Train lacks: c",
        ),
        (
            [*both_classes("Train"), "Train/empty/", *both_classes("Val")],
            r"empty holds no images\. Add some, or remove the empty folder\.",
        ),
        ([*both_classes("Train"), "Val/a/"], "a holds no images"),
        (["Train/a/1.png", "Val/a/1.png"], r"single class \(a\)"),
        (["a/1.png", "a/2.png"], r"single class \(a\)"),
        (["1.png", "2.png"], "no class folders"),
        ([*both_classes("Val"), *both_classes("Test")], "no Train folder"),
        (["a/1.png", "a/2.png", "b/1.png"], "b has a single image"),
        ([*both_classes("Train"), *both_classes("Val"), *both_classes("valid")], "Merge or rename"),
        ([], "no class folders"),
    ],
)
def test_a_data_set_that_cannot_be_trained_on_is_refused_with_folder_and_remedy(
    tmp_path, layout, message
):
    with pytest.raises(DatasetError, match=message):
        index_dataset(dataset(tmp_path, layout))


def test_no_remedy_is_to_remove_a_folder_that_holds_files(tmp_path):
    dataset(tmp_path, [*both_classes("Train"), *both_classes("Val")])
    (tmp_path / "Train/c").mkdir()
    (tmp_path / "Train/c/film.mpg").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"c holds no images, but film\.mpg") as raised:
        index_dataset(tmp_path)
    assert "remove the" not in str(raised.value)
    with pytest.raises(DatasetError, match="single image") as raised:
        index_dataset(dataset(tmp_path / "other", ["a/1.png", "a/2.png", "b/1.png"]))
    assert "remove the" not in str(raised.value)


def test_a_warning_names_what_is_left_out(tmp_path):
    dataset(tmp_path, [*both_classes("Train"), *both_classes("Val"), "Train/stray.png"])
    for i in range(7):
        (tmp_path / f"Train/a/{i}.txt").write_text("a caption")
    with pytest.warns(UserWarning) as caught:
        index_dataset(tmp_path)
    (warning,) = caught
    listed = ", ".join(f"Train/a/{i}.txt" for i in range(5))
    assert str(warning.message).splitlines() == [
        f"Images in {tmp_path}/Train that lie in no class folder are not used (1): stray.png.",
        f"Files that are no images are not used (7): {listed} and 2 more.",
    ]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DatasetError, match="nowhere"):
        index_dataset(tmp_path / "nowhere")


def test_the_fingerprint_changes_with_the_files(tmp_path):
    dataset(tmp_path, both_classes("Train") + both_classes("Val"))
    before = index_dataset(tmp_path).fingerprint()
    assert index_dataset(tmp_path).fingerprint() == before
    dataset(tmp_path, ["Train/a/2.png"])
    assert index_dataset(tmp_path).fingerprint() != before


def test_the_fingerprint_is_that_of_earlier_runs(tmp_path):
    layout = [*both_classes("Train"), *both_classes("Val"), "Test/a/ü.png"]
    for size, path in enumerate(layout):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(bytes(size))
    assert index_dataset(tmp_path).fingerprint() == "926e682c9fae9fa9"


def test_an_index_can_be_made_from_a_table(photos):
    index = index_dataset(photos)
    table = index.table.astype(object)
    again = DatasetIndex(index.root, index.classes, table[table["split"] == "val"])
    assert again.table["path"].tolist() == index.split("val")["path"].tolist()
    assert again.counts().to_dict("list") == {"val": [3, 3]}


def test_files_can_be_left_out(photos):
    index = index_dataset(photos)
    lost = index.paths()[:2]
    kept = index.without([str(path) for path in lost])
    assert len(kept.table) == len(index.table) - 2
    assert not set(lost) & set(kept.paths())


def test_real_folders_with_junk_are_counted_correctly():
    index = index_dataset(shared_data("hymenoptera"))
    assert index.counts().to_dict("list") == {"train": [124, 121], "val": [70, 83]}


def test_splits_and_classes_are_categories(photos):
    table = index_dataset(photos).table
    assert table["split"].cat.categories.tolist() == ["train", "val", "test"]
    assert table["class_name"].cat.categories.tolist() == ["blue", "red"]


def test_photographs_to_try_a_model_on_are_those_of_test_or_else_of_validation(photos):
    assert {path.parent.parent.name for path in held_out_images(photos)} == {"Val"}
    for name in ("a.png", "deeper/b.png"):  # without labels
        write_image(photos / "Test images" / name)
    with pytest.warns(UserWarning, match="Test images has no folder of a class of Train"):
        assert [path.name for path in held_out_images(photos)] == ["a.png", "b.png"]
    shutil.rmtree(photos / "Test images")
    shutil.rmtree(photos / "Val")
    held_out = held_out_images(photos / "Train")
    index = index_dataset(photos / "Train")
    assert 0 < len(held_out) < len(index.images)
    assert set(held_out) == {index.root / path for path in index.split("val")["path"]}
