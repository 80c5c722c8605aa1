"""The sample has what its docstring says, and each flaw is what its file name says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from resnet_ft import ImageError, index_dataset, make_sample_dataset, open_image


def test_the_sample_has_four_balanced_classes_in_three_splits(tmp_path):
    index = index_dataset(make_sample_dataset(tmp_path))
    assert index.classes == ["balloon", "fish", "flower", "mushroom"]
    assert index.counts().to_dict("list") == {"train": [40] * 4, "val": [16] * 4, "test": [12] * 4}


def test_the_same_seed_draws_the_same_images_and_another_seed_others(tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_ft.data.sample._COUNTS", {"Train": 2})
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = make_sample_dataset(tmp_path / name, seed=seed)
        files.append({p.name: p.read_bytes() for p in folder.rglob("*.jpg")})
    assert len(files[0]) == 8
    assert files[0] == files[1]
    assert not set(files[0].values()) & set(files[2].values())


def test_images_differ_in_size_and_content(tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_ft.data.sample._COUNTS", {"Train": 5})
    paths = sorted(make_sample_dataset(tmp_path).rglob("*.jpg"))
    sizes = {Image.open(path).size for path in paths}
    assert len(sizes) > 15
    assert all(160 <= side <= 256 for size in sizes for side in size)
    assert len({path.read_bytes() for path in paths}) == len(paths)


def test_the_flawed_sample_is_accepted_and_one_class_is_rare(folder):
    index = index_dataset(folder)
    counts = index.counts()
    assert index.classes == ["balloon", "fish", "flower", "mushroom"]
    assert counts["train"].drop("mushroom").min() > 5 * counts["train"]["mushroom"]
    assert counts["val"].min() >= 2


def test_only_the_flawed_sample_has_flaws(tmp_path, monkeypatch):
    for counts in ("_COUNTS", "_FLAWED_COUNTS"):
        monkeypatch.setattr(f"resnet_ft.data.sample.{counts}", {"Train": 1, "Val": 1})
    for flawed in (False, True):
        folder = make_sample_dataset(tmp_path / str(flawed), flawed=flawed)
        assert any(folder.rglob("flaw_*")) == flawed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_sample_dataset(tmp_path_factory.mktemp("flawed"), flawed=True)


@pytest.fixture
def stored(folder):
    """Opens the file of a name, as it is stored."""
    return lambda name: Image.open(next(folder.rglob(name)))


def tones(image):
    return np.asarray(image.convert("L"), dtype=float)


def edges(image):
    return tones(image.convert("L").filter(ImageFilter.FIND_EDGES))[2:-2, 2:-2].std()


UNREADABLE = {
    "flaw_decompression_bomb.png": "bomb",
    "flaw_empty.jpg": "empty",
    "flaw_truncated.jpg": "truncated",
    "flaw_unreadable.heic": "",
    "flaw_web_page.jpg": "not an image",
}


def test_the_unreadable_files_are_those_whose_names_say_so(folder):
    reasons = {}
    for path in index_dataset(folder).paths():
        try:
            open_image(path)
        except ImageError as error:
            reasons[path.name] = error.reason
    assert set(reasons) == set(UNREADABLE)
    assert all(word in reasons[name] for name, word in UNREADABLE.items())


def test_the_bomb_is_a_tiny_file(folder):
    assert next(folder.rglob("flaw_decompression_bomb.png")).stat().st_size < 200


@pytest.mark.parametrize(
    ("name", "image_format", "mode"),
    [
        ("flaw_really_a_png.jpg", "PNG", "RGB"),
        ("flaw_16_bit.png", "PNG", "I"),
        ("flaw_cmyk.jpg", "JPEG", "CMYK"),
        ("flaw_grey.jpg", "JPEG", "L"),
        ("flaw_transparent.png", "PNG", "RGBA"),
    ],
)
def test_unusual_formats_and_modes_are_stored_as_their_names_say(stored, name, image_format, mode):
    image = stored(name)
    assert image.format == image_format
    assert image.mode.startswith(mode)  # 16 bits are "I" or "I;16", as the version of Pillow has it


def test_the_transparent_image_shows_white_in_its_corners(folder, stored):
    assert stored("flaw_transparent.png").getextrema()[3] == (0, 255)
    assert open_image(next(folder.rglob("flaw_transparent.png"))).getpixel((0, 0)) == (255,) * 3


def test_the_animation_moves(stored):
    image = stored("flaw_animated.gif")
    first = tones(image)
    image.seek(image.n_frames - 1)
    assert image.n_frames == 4
    assert np.abs(tones(image) - first).mean() > 2


def test_flawed_sizes_are_extreme(stored):
    assert max(stored("flaw_tiny.jpg").size) < 20
    width, height = stored("flaw_extreme_aspect_ratio.jpg").size
    assert width / height > 20


def test_dark_bright_blank_and_blurred_images_look_it(stored):
    ordinary = stored("fish_000.jpg")
    assert tones(stored("flaw_nearly_black.jpg")).max() < 0.2 * 255
    assert tones(stored("flaw_nearly_white.jpg")).min() > 0.8 * 255
    assert tones(stored("flaw_blank.jpg")).std() < 1 < tones(stored("flaw_nearly_black.jpg")).std()
    assert edges(stored("flaw_blurred.jpg")) < edges(ordinary) / 3


def test_the_sideways_image_is_upright_when_it_is_opened(folder, stored):
    sideways = stored("flaw_stored_sideways.jpg")
    assert sideways.getexif()[274] == 6
    upright = open_image(next(folder.rglob("flaw_stored_sideways.jpg")))
    # Every fish swims before water that gets darker from the top down.
    assert tones(upright)[:9].mean() > tones(upright)[-9:].mean() + 25
    turned = tones(sideways)
    assert abs(turned[:9].mean() - turned[-9:].mean()) < 25


def test_copies_are_byte_identical_within_a_class_and_across_classes(folder):
    balloon, fish = folder / "Train/balloon", folder / "Train/fish"
    first, copy = balloon / "flaw_duplicate.jpg", balloon / "flaw_duplicate_copy.jpg"
    assert first.read_bytes() == copy.read_bytes()
    name = "flaw_in_two_classes.jpg"
    assert (balloon / name).read_bytes() == (fish / name).read_bytes()


def test_a_training_image_is_also_in_val_in_another_size(stored):
    train, val = stored("flaw_also_in_val.jpg"), stored("flaw_also_in_train.jpg")
    assert train.size != val.size
    difference = np.abs(tones(train.resize(val.size)) - tones(val)).mean()
    another = np.abs(tones(stored("flower_000.jpg").resize(val.size)) - tones(val)).mean()
    assert difference < 3
    assert another > 10


def test_the_mislabelled_image_shows_water_among_the_flowers(stored):
    for name, channel in (("flaw_mislabelled.jpg", "blue"), ("flower_000.jpg", "green")):
        red_green_blue = np.asarray(stored(name)).mean(axis=(0, 1))
        assert ("red", "green", "blue")[int(red_green_blue.argmax())] == channel


def test_junk_and_an_image_outside_of_any_class_are_not_indexed(folder):
    found = {path.relative_to(folder).as_posix() for path in index_dataset(folder).paths()}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there - found == {
        ".DS_Store",
        "Train/fish/.ipynb_checkpoints/fish_000-checkpoint.jpg",
        "Train/fish/Thumbs.db",
        "Train/fish/notes.txt",
        "Train/flaw_outside_of_any_class.jpg",
        "__MACOSX/Train/fish/._fish_000.jpg",
    }


@pytest.fixture
def few_images(monkeypatch):
    """A flawed sample of little more than its flaws, which is drawn quickly."""
    monkeypatch.setattr("resnet_ft.data.sample._FLAWED_COUNTS", {"Train": 1, "Val": 1})


def test_a_file_of_the_user_with_a_system_name_stays(tmp_path, few_images):
    notes = tmp_path / "Train/fish/notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    make_sample_dataset(tmp_path, flawed=True)
    assert notes.read_text() == "mine"


def test_the_same_seed_makes_the_same_flaws_and_another_seed_others(tmp_path, few_images):
    samples = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = make_sample_dataset(tmp_path / name, flawed=True, seed=seed)
        files = [path for path in folder.rglob("*") if path.is_file()]
        samples.append({path.relative_to(folder): path.read_bytes() for path in files})
    assert len(samples[0]) > 35
    assert samples[0] == samples[1]
    cmyk = Path("Train/fish/flaw_cmyk.jpg")
    assert samples[0][cmyk] != samples[2][cmyk]
