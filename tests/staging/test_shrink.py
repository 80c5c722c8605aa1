import io

import numpy as np
import pytest
from conftest import write_image
from PIL import Image, ImageCms

from resnet_ft import ParameterError, index_dataset, open_image, stage_dataset


def scene(size=(400, 300)) -> Image.Image:
    """Soft colours that differ from corner to corner, so that a turned copy is noticed."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    pixels = np.stack([255 * x, 255 * y, 200 * (1 - x) * y + 40], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def shrink(path, max_side):
    """The file's copy, staged from a folder of its own with `max_side`."""
    folder = path.parent
    return stage_dataset(folder, folder.parent / "local", max_side=max_side) / path.name


def difference(image: Image.Image, other: Image.Image) -> float:
    return np.abs(np.asarray(image, float) - np.asarray(other, float)).mean()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


MODES = {
    ".jpg": ["RGB", "L", "CMYK"],
    ".png": ["RGB", "L", "P", "RGBA", "I;16", "1"],
    ".webp": ["RGB", "RGBA"],
    ".bmp": ["RGB", "L", "P", "1"],
    ".gif": ["L", "P"],
    ".tif": ["RGB", "CMYK", "I;16"],
    ".heic": ["RGB"],
}


@pytest.mark.parametrize(
    ("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes]
)
def test_the_copy_shows_the_same_in_the_same_format(folder, suffix, mode):
    if suffix == ".heic":
        pytest.importorskip("pillow_heif")
    path = folder / f"photo{suffix}"
    scene().convert("L" if mode == "I;16" else mode).convert(mode).save(path)
    copied = shrink(path, 100)
    with Image.open(path) as before, Image.open(copied) as after:
        assert after.format == before.format
        assert after.size == (100, 75)
    expected = open_image(path).resize((100, 75), Image.Resampling.LANCZOS)
    tolerance = 12 if suffix in (".gif", ".heic") or mode in ("1", "P") else 3
    assert difference(open_image(copied), expected) < tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_the_copy_is_upright_and_stays_so(folder, suffix, orientation):
    path = folder / f"turned{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    scene().save(path, exif=exif)
    copied = open_image(shrink(path, 80))
    upright = open_image(path)
    assert copied.size == ((80, 60) if orientation < 5 else (60, 80))
    assert difference(copied, upright.resize(copied.size, Image.Resampling.LANCZOS)) < 3
    with Image.open(shrink(path, 80)) as image:
        assert image.getexif().get(274, 1) == 1


def test_a_telephone_image_is_read_at_reduced_scale_but_never_below(folder):
    scene((4032, 3024)).save(folder / "a.jpg")
    original = open_image(folder / "a.jpg")
    for max_side in (504, 505, 1500):
        copied = open_image(shrink(folder / "a.jpg", max_side))
        assert copied.size == (max_side, round(max_side * 3024 / 4032))
        assert difference(copied, original.resize(copied.size, Image.Resampling.LANCZOS)) < 2


def test_smaller_animated_and_broken_images_are_copied_as_they_are(folder):
    scene((100, 20)).save(folder / "small.jpg")
    frames = [scene(), scene().rotate(90)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "pages.tif", save_all=True, append_images=frames[1:])
    scene().save(folder / "whole.jpg")
    (folder / "half.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:2000])
    (folder / "whole.jpg").unlink()
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").touch()
    staged = stage_dataset(folder, folder.parent / "local", max_side=100)
    copied = {path.name: path.read_bytes() for path in staged.glob("*.*") if path.name[0] != "."}
    assert copied == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_jpeg_with_a_preview_behind_it_is_shrunk(folder):
    scene().save(folder / "phone.jpg", "MPO", save_all=True, append_images=[scene((40, 30))])
    with Image.open(folder / "phone.jpg") as image:
        assert image.format == "MPO"
    with Image.open(shrink(folder / "phone.jpg", 100)) as image:
        assert (image.format, image.size) == ("JPEG", (100, 75))


def test_a_colour_profile_is_kept_where_it_still_describes_the_pixels(folder):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for suffix in ("jpg", "png", "webp", "tif"):
        scene().save(folder / f"photo.{suffix}", icc_profile=profile)
    for_print = profile[:16] + b"CMYK" + profile[20:]
    scene().convert("CMYK").save(folder / "print.jpg", icc_profile=for_print)
    staged = stage_dataset(folder, folder.parent / "local", max_side=100)
    for suffix in ("jpg", "png", "webp", "tif"):
        with Image.open(staged / f"photo.{suffix}") as image:
            assert image.info["icc_profile"] == profile
    with Image.open(staged / "print.jpg") as image:
        assert image.mode == "RGB" and "icc_profile" not in image.info


def test_a_shrunk_jpeg_is_of_good_quality_and_much_smaller(folder):
    noise = np.random.default_rng(0).integers(-8, 9, (1200, 1600, 3))
    pixels = np.clip(np.asarray(scene((1600, 1200)), int) + noise, 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "a.jpg", quality=95)
    copied = shrink(folder / "a.jpg", 400)
    assert copied.stat().st_size < (folder / "a.jpg").stat().st_size / 8
    reference = io.BytesIO()
    scene().save(reference, "JPEG", quality=90)
    with Image.open(copied) as image, Image.open(reference) as expected:
        assert image.quantization == expected.quantization


def test_a_local_folder_is_shrunk_into_a_copy_and_not_touched(photos, tmp_path):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.rglob("*.png")}
    staged = stage_dataset(photos, tmp_path / "local", max_side=24)
    assert staged.parent == tmp_path / "local"
    assert index_dataset(staged).counts().equals(index_dataset(photos).counts())
    assert {open_image(path).size for path in staged.rglob("*.png")} == {(24, 20)}
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.rglob("*.png")}
    assert after == before


def test_each_size_has_its_own_folder_which_is_topped_up(photos, tmp_path):
    small = stage_dataset(photos, tmp_path / "local", max_side=24)
    larger = stage_dataset(photos, tmp_path / "local", max_side=32)
    assert small != larger
    before = {path: path.stat().st_ctime_ns for path in small.rglob("*.png")}
    write_image(photos / "Train" / "red" / "new.png")
    assert stage_dataset(photos, tmp_path / "local", max_side=24) == small
    assert open_image(small / "Train" / "red" / "new.png").size == (24, 20)
    assert all(path.stat().st_ctime_ns == was for path, was in before.items())


def test_a_size_below_one_pixel_is_refused(photos, tmp_path):
    with pytest.raises(ParameterError, match="max_side is 0"):
        stage_dataset(photos, tmp_path / "local", max_side=0)
    with pytest.raises(ParameterError, match="workers is 0"):
        stage_dataset(photos, tmp_path / "local", workers=0)
