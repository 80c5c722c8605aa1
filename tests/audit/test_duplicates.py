import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

from resnet_ft.audit.duplicates import find_duplicates
from resnet_ft.audit.inspect import inspect_file


def photo(seed=0, size=(160, 120)):
    """Smooth shapes of random colours, large and small."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).resize(size, 3), float
        )
        for shape in ((3, 4, 3), (12, 16, 3))
    ]
    return Image.fromarray((0.7 * layers[0] + 0.3 * layers[1]).astype(np.uint8))


@pytest.fixture
def pairs(tmp_path):
    """Save images under "split/class/file" and find their copies."""

    def found(images):
        rows = []
        for path, image in images.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / path)
            split, class_name, _ = path.split("/")
            facts = inspect_file(tmp_path / path)
            rows.append({"path": path, "split": split, "class_name": class_name, **facts})
        return find_duplicates(pd.DataFrame(rows))

    return found


def crop(image, share):
    width, height = image.size
    return image.crop((share * width, share * height, (1 - share) * width, (1 - share) * height))


CHANGES = {
    "half the size": lambda image: image.resize((80, 60)),
    "twice the size": lambda image: image.resize((320, 240)),
    "another shape": lambda image: image.resize((130, 130)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "cropped a little": lambda image: crop(image, 0.03),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_that_was_changed_is_near(pairs, change):
    found = pairs({"train/a/1.png": photo(), "val/a/2.jpg": CHANGES[change](photo())})
    assert found["kind"].tolist() == ["near"]
    assert 0 <= found["distance"][0] <= 0.15


def test_other_mirrored_and_recoloured_images_are_no_copies(pairs):
    others = {f"train/a/{seed}.png": photo(seed) for seed in range(8)}
    others["train/a/mirrored.png"] = photo().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    others["train/a/recoloured.png"] = Image.merge("RGB", photo().split()[::-1])
    assert pairs(others).empty


def test_the_relation_names_labels_before_splits(pairs):
    found = pairs(
        {
            "train/a/1.png": photo(1),
            "train/a/2.png": photo(1),
            "train/b/3.png": photo(1),
            "val/a/4.png": photo(1),
            "val/b/5.png": photo(1),
        }
    ).set_index("path")
    assert set(found["other"]) == {"train/a/1.png"}
    assert set(found["kind"]) == {"exact"}
    assert found["relation"].to_dict() == {
        "train/a/2.png": "same class",
        "train/b/3.png": "between classes",
        "val/a/4.png": "between splits",
        "val/b/5.png": "between classes",
    }


def test_blank_images_resemble_nothing(pairs):
    greys = {f"train/a/{level}.png": Image.new("RGB", (50, 50), (level,) * 3) for level in (9, 99)}
    assert pairs(greys).empty


def many(count, thumbnail, bits):
    return pd.DataFrame(
        {
            "path": [str(i) for i in range(count)],
            "split": "train",
            "class_name": "a",
            "content": [f"content {i}" for i in range(count)],
            "perceptual_hash": [f"{bits(i):016x}" for i in range(count)],
            "thumbnail": [thumbnail(i).astype(np.uint8).tobytes() for i in range(count)],
        }
    )


def test_a_thousand_equal_images_have_one_pair_each():
    pixels = np.random.default_rng(0).integers(0, 256, 24 * 24 * 3)
    found = find_duplicates(many(1000, lambda i: pixels, lambda i: 2**40 + 5))
    assert len(found) == found["path"].nunique() == 999
    assert (found["distance"] == 0).all()


def test_equal_hashes_alone_make_no_copies():
    rng = np.random.default_rng(0)
    images = many(300, lambda i: rng.integers(0, 256, 24 * 24 * 3), lambda i: 2**40 + 5)
    assert find_duplicates(images).empty


def test_hashes_that_differ_in_more_than_ten_bits_are_not_compared():
    pixels = np.random.default_rng(0).integers(0, 256, 24 * 24 * 3)
    for bits, count in ((10, 1), (11, 0)):
        images = many(2, lambda i: pixels, lambda i, bits=bits: i * (2**bits - 1))
        assert len(find_duplicates(images)) == count
