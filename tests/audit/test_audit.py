import os

import pandas as pd
import pytest
from conftest import shared_data, write_image
from PIL import Image

from resnet_ft import DatasetError, ParameterError, make_sample_dataset
from resnet_ft.audit.audit import audit_dataset

# What the flawed sample's names say, as the audit says it.
FLAWS = {
    "flaw_16_bit.png": "more than 8 bits",
    "flaw_also_in_train.jpg": "leakage",
    "flaw_animated.gif": "animated",
    "flaw_blank.jpg": "blank",
    "flaw_blurred.jpg": "blurred",
    "flaw_cmyk.jpg": "CMYK",
    "flaw_decompression_bomb.png": "decompression bomb",
    "flaw_duplicate_copy.jpg": "duplicate",
    "flaw_empty.jpg": "empty file",
    "flaw_extreme_aspect_ratio.jpg": "extreme aspect ratio",
    "flaw_grey.jpg": "grey among colour",
    "flaw_in_two_classes.jpg": "label conflict",
    "flaw_nearly_black.jpg": "very dark",
    "flaw_nearly_white.jpg": "very bright",
    "flaw_outside_of_any_class.jpg": "outside of a class",
    "flaw_really_a_png.jpg": "wrong extension",
    "flaw_stored_sideways.jpg": "rotated by EXIF",
    "flaw_tiny.jpg": "tiny",
    "flaw_transparent.png": "transparent",
    "flaw_truncated.jpg": "truncated",
    "flaw_web_page.jpg": "not an image",
    ".DS_Store": "junk",
    "__MACOSX": "junk",
    ".ipynb_checkpoints": "junk",
    "Thumbs.db": "junk",
    "notes.txt": "other file",
}


@pytest.fixture(scope="module")
def flawed(tmp_path_factory):
    folder = make_sample_dataset(tmp_path_factory.mktemp("flawed"), flawed=True)
    return audit_dataset(folder, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def audit(tmp_path):
    return lambda folder, **options: audit_dataset(folder, cache_dir=tmp_path / "cache", **options)


def issues_of(audit):
    """Issues by path."""
    return audit.issues.groupby("path")["issue"].apply(set).to_dict()


def test_a_rare_class_is_found(flawed):
    assert issues_of(flawed)["Train/mushroom"] == {"few images", "class imbalance"}


@pytest.mark.parametrize("name", FLAWS)
def test_each_flaw_is_found(flawed, name):
    found = {path.split("/")[-1]: issues for path, issues in issues_of(flawed).items()}
    assert FLAWS[name] in found[name]


def test_images_without_a_flaw_are_not_reported(flawed):
    files = flawed.issues["path"][flawed.issues["path"].str.endswith(".jpg")]
    assert files.str.contains("flaw_").all()


def test_the_clean_sample_has_no_issues(audit, tmp_path):
    found = audit(make_sample_dataset(tmp_path / "sample"))
    assert found.issues.empty, found.issues
    assert "Nothing was found" in repr(found)
    assert "Nothing was found" in found._repr_html_()


def test_the_summary_counts_each_issue_and_says_what_it_means(flawed):
    summary = flawed.summary()
    assert summary["count"].sum() == len(flawed.issues)
    assert summary["severity"].unique().tolist() == ["error", "warning", "info"]
    assert summary["meaning"].str.endswith(".").all()


def test_the_audit_displays_its_summary(flawed):
    html, text = flawed._repr_html_(), repr(flawed)
    for row in flawed.summary().itertuples():
        assert row.issue in text
        assert row.meaning in html
    assert "classes" in text.splitlines()[0]


def test_every_file_has_a_row_of_facts(flawed):
    files = flawed.images.set_index("path")
    assert files.loc["Train/fish/flaw_stored_sideways.jpg", "orientation"] == 6
    assert files.loc["Train/balloon/flaw_truncated.jpg", "reason"].startswith("truncated")
    assert pd.isna(files.loc["Train/fish/flaw_empty.jpg", "width"])
    assert files["class_name"].nunique() == 4


def test_a_data_set_that_training_refuses_is_reported(audit, tmp_path):
    write_image(tmp_path / "data/Train/a/1.png")
    write_image(tmp_path / "data/Val/b/2.png")
    (tmp_path / "data/Train/empty").mkdir()
    found = audit(tmp_path / "data").issues
    refused = found[found["issue"] == "refused"]["detail"].tolist()
    assert [message.split(". ")[0].split(": ")[-1] for message in refused] == [
        f"{tmp_path}/data/Train/empty holds no images",
        f"{tmp_path}/data has a single class (a)",
        "b",
    ]


def test_the_audit_says_how_it_read_the_folders(audit, photos):
    write_image(photos / "Train/red/dark/1.png")
    for i in range(3):
        write_image(photos / f"Test/{i}.png")
        write_image(photos / f"masks/{i}.png")
    found = audit(photos).issues
    assumed = found[found["issue"] == "assumed"]
    assert dict(zip(assumed["path"], assumed["detail"].str.split(": ").str[-1], strict=True)) == {
        "Train/red/dark": "Train/red/dark.",
        "Test": f"{photos}/Test has no folder of a class of Train, so it is not used. Notebook 5 "
        "predicts images without labels.",
        "masks": f"{photos}/masks is not used, since it lies beside Test, Train, Val.",
    }
    assert "outside of a class" not in set(found["issue"])  # one line for a folder, not for each


@pytest.mark.parametrize("layout", ["", "Train", "Train/a"])
def test_folders_without_images_are_reported(audit, tmp_path, layout):
    (tmp_path / "data" / layout).mkdir(parents=True)
    found = audit(tmp_path / "data")
    assert found.images.empty
    assert found.issues["issue"].tolist() == ["refused"]


def test_unreadable_images_do_not_count_for_their_class(audit, photos):
    for path in (photos / "Val/red").iterdir():
        path.write_bytes(b"")
    for i in range(2):
        write_image(photos / f"Train/green/{i}.png", colour=(0, 200, 0))
    found = issues_of(audit(photos))
    assert "no readable image" in found["Val/red"]
    assert found["Train/green"] == {"few images", "class in one split"}


def test_hostile_names_and_files_do_not_stop_the_audit(audit, photos):
    folder = photos / "Train/red"
    os.mkfifo(folder / "pipe.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere")
    (folder / "loop").symlink_to(folder)
    write_image(folder / "a folder.jpg/line\nbreak ü.png", colour=(250, 10, 10))
    (folder / "drawing.svg").write_text("<svg/>")
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    found = issues_of(audit(photos))
    assert found["Train/red/pipe.jpg"] == found["Train/red/dangling.jpg"] == {"unreadable"}
    assert found["Train/red/drawing.svg"] == {"unread format"}
    assert found[os.fsdecode(b"Train/red/\xff.png")] == {"not an image"}
    assert "Train/red/a folder.jpg/line\nbreak ü.png" in set(audit(photos).images["path"])


def test_whether_an_image_is_tiny_depends_on_the_image_size(audit, photos):
    assert "tiny" not in set(audit(photos, image_size=160).issues["issue"])  # the short side is 40
    assert "tiny" in set(audit(photos, image_size=161).issues["issue"])


def test_a_missing_folder_and_sizes_below_one_are_refused(audit, photos):
    with pytest.raises(DatasetError, match="nowhere"):
        audit(photos / "nowhere")
    for wrong in ({"image_size": 0}, {"num_workers": -1}):
        with pytest.raises(ParameterError):
            audit(photos, **wrong)


def test_the_validation_flowers_that_are_also_in_train_are_found(audit):
    found = audit(shared_data("flowers12"))
    leaked = found.pairs[found.pairs["relation"] == "between splits"]
    assert len(leaked) == 25  # all of them looked at: two are crops
    assert leaked["other"].str.startswith("Train/").all()
    assert not {"blank", "very dark", "very bright", "blurred"} & set(found.issues["issue"])


def test_similar_hands_are_no_copies_and_rotated_ones_are_reported(audit):
    found = audit(shared_data("signdigits10"))
    assert found.pairs.empty
    expected = [["rotated by EXIF", 3], ["colour profile", 1]]  # one line for the data set
    assert found.summary()[["issue", "count"]].values.tolist() == expected
    assert "Display P3: 1,851 of 2,0" in found.issues["detail"].iloc[-1]


def test_junk_among_ants_and_bees_is_reported(audit):
    found = audit(shared_data("hymenoptera"))
    junk = found.issues.loc[found.issues["issue"] == "junk", "path"].tolist()
    assert junk == ["Train/.DS_Store", "Val/.DS_Store"]
    assert Image.open(found.root / "Train/ants/imageNotFound.gif").format == "GIF"
    assert "grey among colour" in issues_of(found)["Train/ants/imageNotFound.gif"]
    assert found.pairs.empty
