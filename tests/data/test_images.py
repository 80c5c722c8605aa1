import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import shared_data, write_image
from PIL import Image
from torchvision.transforms import v2

from resnet_ft import ImageError, Preprocessing, eval_transform, open_image
from resnet_ft.data.cache import decode_once
from resnet_ft.data.images import open_resized, resized


def pixel(path, x=0, y=0):
    image = open_image(path)
    assert image.mode == "RGB"
    return image.getpixel((x, y))


def near(actual, expected, tolerance=3):
    return all(abs(a - b) <= tolerance for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"])
def test_every_common_format_is_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (20, 10), (200, 60, 40)).save(path)
    assert open_image(path).size == (20, 10)
    assert near(pixel(path, 5, 5), (200, 60, 40), tolerance=8)


# What each orientation means is in the EXIF standard (tag 274): where row 0 and column 0 are.
@pytest.mark.parametrize(
    ("orientation", "corner"),
    [
        (1, (0, 0)),
        (2, (3, 0)),
        (3, (3, 1)),
        (4, (0, 1)),
        (5, (0, 0)),
        (6, (1, 0)),
        (7, (1, 3)),
        (8, (0, 3)),
    ],
)
def test_images_are_turned_upright_by_their_exif(tmp_path, orientation, corner):
    stored = Image.new("RGB", (4, 2))
    stored.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    upright = open_image(tmp_path / "a.png")
    assert upright.size == ((4, 2) if orientation < 5 else (2, 4))
    assert upright.getpixel(corner) == (255, 255, 255)


def test_a_readable_orientation_counts_even_if_the_rest_of_exif_is_broken(tmp_path):
    # Little-endian TIFF header, one directory of two entries: the orientation, and an ASCII tag
    # whose value would be far outside of the file.
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x010F, 2, 99, 9999)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (30, 40)


def test_a_very_small_jpeg_is_read(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg")
    assert open_image(tmp_path / "a.jpg").size == (3, 2)


def test_any_failure_of_a_decoder_is_an_image_error(tmp_path):
    Image.new("RGB", (64, 64), (9, 99, 9)).save(tmp_path / "a.webp")
    content = (tmp_path / "a.webp").read_bytes()
    for name in ("a.webp", "b.avif"):
        for cut in range(13, len(content), 7):
            (tmp_path / name).write_bytes(content[:cut] + b"\xff" * 20)
            try:
                open_image(tmp_path / name)
            except ImageError as error:
                assert name in str(error)
            decode_once([tmp_path / name], 32)


def test_broken_exif_does_not_stop_an_image(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8), (10, 200, 10)).save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert near(pixel(path), (10, 200, 10))


def test_grey_palette_and_bilevel_keep_their_tones(tmp_path):
    for mode, value, expected in (("L", 90, (90,) * 3), ("1", 1, (255,) * 3)):
        Image.new(mode, (4, 4), value).save(tmp_path / f"{mode}.png")
        assert pixel(tmp_path / f"{mode}.png") == expected
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 12, 200, 90])
    palette.save(tmp_path / "p.png")
    assert pixel(tmp_path / "p.png") == (12, 200, 90)


def test_transparent_images_are_laid_on_white(tmp_path):
    half = Image.new("RGBA", (4, 4), (200, 0, 0, 128))
    half.save(tmp_path / "rgba.png")
    assert near(pixel(tmp_path / "rgba.png"), (227, 127, 127))  # 128/255 red over white
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "la.png")
    assert pixel(tmp_path / "la.png") == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.save(tmp_path / "p.png", transparency=0)
    assert pixel(tmp_path / "p.png") == (255, 255, 255)


def test_cmyk_keeps_its_colours(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")  # no cyan: red
    assert near(pixel(tmp_path / "a.jpg"), (255, 0, 0), tolerance=6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_tones(tmp_path, suffix):
    ramp = np.array([[0, 16448, 32896, 65535]], dtype=np.uint16)  # 0, 64, 128 and 255 of 255
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    assert [pixel(tmp_path / f"a.{suffix}", x)[0] for x in range(4)] == [0, 64, 128, 255]


def test_floating_point_keeps_its_tones(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert [pixel(tmp_path / "a.tif", x)[0] for x in range(3)] == [0, 128, 255]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert near(pixel(tmp_path / "a.gif"), (255, 0, 0))


def test_an_open_file_is_read_too(tmp_path):
    content = write_image(tmp_path / "a.png").read_bytes()
    assert open_image(io.BytesIO(content)).size == (48, 40)


def broken_files(folder):
    """Files that cannot be read, with a word of the reason."""
    jpeg = write_image(folder / "good.jpg", (200, 200)).read_bytes()
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    png = write_image(folder / "good.png", (60, 60)).read_bytes()
    (folder / "truncated.png").write_bytes(png[: len(png) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("this is not an image")
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(
        ">I4sIIBBBBB", 13, b"IHDR", 50000, 50000, 8, 2, 0, 0, 0
    )
    (folder / "bomb.png").write_bytes(header + b"\0\0\0\0")
    return {
        "truncated.jpg": "truncated",
        "truncated.png": "",
        "empty.jpg": "empty",
        "text.jpg": "not an image",
        "bomb.png": "",
        "missing.jpg": "no such file",
    }


def test_an_unreadable_file_is_an_error_with_file_and_reason(tmp_path):
    for name, word in broken_files(tmp_path).items():
        with pytest.raises(ImageError, match=name) as raised:
            open_image(tmp_path / name)
        assert word in raised.value.reason
        assert raised.value.reason in str(raised.value)


def test_decoding_lists_exactly_the_unreadable_files(tmp_path):
    broken = broken_files(tmp_path)
    good = [tmp_path / "good.jpg", tmp_path / "good.png"]
    _, reasons = decode_once([*good, *(tmp_path / name for name in broken)], 32)
    assert list(reasons) == [number + len(good) for number in range(len(broken))]
    for reason, word in zip(reasons.values(), broken.values(), strict=True):
        assert word in reason


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 60, 40))).save(tmp_path / "a.heic")
    assert near(pixel(tmp_path / "a.heic", 30, 30), (200, 60, 40), tolerance=8)


def test_heic_without_pillow_heif_names_the_remedy_whatever_its_extension(tmp_path):
    for name in ("a.heic", "really heic.jpg"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64)
    code = """
import io, pathlib, sys
sys.modules["pillow_heif"] = None  # as if it were not installed
from resnet_ft import ImageError, open_image
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    for file in (path, io.BytesIO(path.read_bytes())):
        try:
            open_image(file)
        except ImageError as error:
            print(error.reason)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 4
    assert all("pip install pillow-heif" in line for line in lines)


@pytest.fixture
def large_jpeg(tmp_path) -> Path:
    """A JPEG of 1600x1200 pixels with soft shapes and the grain of a sensor."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((1600, 1200))
    grain = rng.normal(0, 6, (1200, 1600, 3))
    pixels = np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.jpg", quality=90)
    return tmp_path / "large.jpg"


def test_a_reduced_jpeg_has_the_size_that_torchvision_gives_the_full_one(large_jpeg):
    full = open_image(large_jpeg)
    for side in (37, 107, 150, 151, 599, 1200, 1300):
        expected = v2.functional.resize(full, side).size if side < 1200 else full.size
        assert open_resized(large_jpeg, side).size == resized(full, side).size == expected


@pytest.mark.parametrize("image_size", [48, 64, 96, 224, 320])
def test_evaluation_sees_nearly_the_same_of_a_reduced_and_a_full_jpeg(large_jpeg, image_size):
    assert difference(large_jpeg, image_size) < 2 / 255


def test_evaluation_sees_nearly_the_same_of_real_images():
    folder = shared_data("hymenoptera") / "Val" / "ants"
    differences = [difference(path, 96) for path in sorted(folder.glob("*.jpg"))]
    assert len(differences) > 50
    assert max(differences) > 0  # some of them are decoded at a reduced scale
    assert max(differences) < 2 / 255


def difference(path: Path, image_size: int) -> float:
    """The mean absolute difference between reduced and full decoding, on a scale from 0 to 1."""
    wanted = Preprocessing(image_size, mean=(0, 0, 0), std=(1, 1, 1))
    transform = eval_transform(wanted)
    reduced = transform(open_resized(path, wanted.side))
    return (reduced - transform(open_image(path))).abs().mean().item()


def test_a_small_image_is_not_enlarged(tmp_path):
    assert open_resized(write_image(tmp_path / "a.png", size=(30, 20)), 64).size == (30, 20)


@pytest.mark.parametrize("turn", [1, 2, 3, 4, 5, 6, 7, 8])
def test_reduced_images_are_turned_upright_too(large_jpeg, turn):
    exif = Image.Exif()
    exif[274] = turn
    image = Image.open(large_jpeg)
    image.save(large_jpeg, exif=exif, quality=95)
    assert difference(large_jpeg, 64) < 2 / 255


def test_the_middle_of_a_very_long_image_is_kept(tmp_path):
    ramp = np.repeat(np.linspace(0, 255, 4000).astype(np.uint8)[None], 10, axis=0)
    Image.fromarray(ramp).save(tmp_path / "long.png")
    image = open_resized(tmp_path / "long.png", 64)
    assert image.size == (160, 10)
    assert np.asarray(image).mean() == pytest.approx(127, abs=2)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a file"):
        open_image(tmp_path / "pipe.jpg")
