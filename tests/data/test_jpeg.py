"""JPEGs that are damaged inside are found, and no good one is taken for damaged."""

import io

import numpy as np
import pytest
from conftest import shared_data
from PIL import Image

from resnet_ft import ImageError, audit_dataset, open_image
from resnet_ft.data import jpeg


def picture(*, noise=60, **options):
    """A JPEG of 300 x 400 pixels: shapes with some noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:300, :400]
    shapes = 127 + 90 * np.sin(rows / 20)[..., None] * np.cos(columns[..., None] / [30, 20, 25])
    pixels = shapes + rng.integers(-noise, noise + 1, shapes.shape)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", **options)
    return file.getvalue()


def read(content):
    return open_image(io.BytesIO(content))


KINDS = [{}, {"progressive": True}, {"optimize": True}, {"quality": 95, "subsampling": 0}]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_missing_part_with_an_end_marker_behind_it_is_damage(options):
    whole = picture(**options)
    assert np.array_equal(read(whole), np.asarray(Image.open(io.BytesIO(whole))))
    for share in (0.1, 0.3, 0.5):  # of the rest of a progressive one, nothing can be seen
        cut = whole[: int(share * len(whole))]
        for damaged in (cut, cut + b"\xff\xd9"):
            with pytest.raises(ImageError, match=r"truncated|damaged inside"):
                read(damaged)


@pytest.mark.parametrize("size", [1024, 4096])
def test_a_hole_of_zeros_is_damage(size):
    whole = picture()
    for share in (0.2, 0.5, 0.8):
        start = int(share * len(whole))
        with pytest.raises(ImageError, match="damaged inside"):
            read(whole[:start] + bytes(size) + whole[start + size :])


@pytest.mark.parametrize("fill", [b"\0", b"a"])
@pytest.mark.parametrize("options", [KINDS[0], *KINDS[2:]], ids=str)
def test_data_that_are_left_over_behind_the_picture_are_damage(options, fill):
    whole = picture(noise=5, **options)  # few bytes per block, so that the hole makes too many
    start, length = len(whole) // 2, len(whole) // 8
    with pytest.raises(ImageError):
        read(whole[:start] + (fill * length)[:length] + whole[start + length :])


def test_of_a_small_picture_a_tenth_is_damage():
    file = io.BytesIO()
    small = read(picture()).resize((160, 213))
    small.save(file, "JPEG", quality=60, optimize=True)
    whole = file.getvalue()
    for share in range(2, 40):
        start = whole.index(b"\xff\xda") + 14  # behind the header of the scan
        cut = start + (len(whole) - start) * share // 100
        with pytest.raises(ImageError):
            read(whole[:cut] + b"\xff\xd9")


def test_a_file_that_only_lacks_its_end_marker_is_read():
    for options in KINDS[:1] + KINDS[2:]:
        whole = picture(**options)
        assert np.array_equal(read(whole[:-2]), read(whole))
        assert jpeg.lacks_end(whole[:-2]) and not jpeg.lacks_end(whole)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_plain_pictures_are_not_damaged(mode):
    for colour in (0, 128, 255):
        for options in KINDS:
            file = io.BytesIO()
            Image.new(mode, (200, 120), (colour,) * 3 if mode == "RGB" else colour).save(
                file, "JPEG", **options
            )
            assert read(file.getvalue()).size == (200, 120)


def test_the_audit_finds_a_damaged_photograph(photos):
    whole = picture()
    (photos / "Train/red/damaged.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    issues = audit_dataset(photos).issues
    found = issues[issues["path"] == "Train/red/damaged.jpg"]
    assert found["severity"].tolist() == ["error"]


def test_no_photograph_of_a_real_data_set_is_taken_for_damaged():
    for path in sorted(shared_data("flowers12").rglob("*.jpg"))[::5]:
        with Image.open(path) as image:
            jpeg.load(image)
