"""Images whose numbers are no 8-bit colours: one range per data set, the same for one image."""

import struct
import warnings

import numpy as np
import pytest
import torch
from conftest import network
from PIL import Image, TiffImagePlugin

from resnet_ft import Predictor, eval_transform, make_dataloaders, open_image, save_checkpoint
from resnet_ft.data.cache import DecodedImages, decode_once

RAMP = np.linspace(0, 1, 1024).reshape(32, 32)


def saved(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def grey(path, **options):
    image = np.asarray(open_image(path, **options))
    assert (image == image[..., :1]).all()
    return image[..., 0]


def tiff(path, values, *, bits, sample_format=1, photometric=1):
    """A TIFF as Pillow does not write it, of one uncompressed strip."""
    height, width = values.shape
    content = values.tobytes()
    if bits == 12:  # two values in three bytes
        a, b = values.ravel()[::2].astype(int), values.ravel()[1::2].astype(int)
        content = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype("u1").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 10 + 10 * 12 + 4}
    tags |= {277: 1, 278: height, 279: len(content), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    path.write_bytes(head + entries + struct.pack("<I", 0) + content)
    return path


# What each file holds, and the steps that 1,024 different values become in 8 bits.
FULL = {
    "10 bits": lambda path: saved(path, (RAMP * 1023).astype(np.uint16)),
    "12 bits": lambda path: saved(path, (RAMP * 4095).astype(np.uint16)),
    "12 bits declared": lambda path: tiff(path, (RAMP * 4095).astype(np.uint16), bits=12),
    "16 bits": lambda path: saved(path, (RAMP * 65535).astype(np.uint16)),
    "signed": lambda path: tiff(
        path, (RAMP * 3000 - 1000).astype(np.int16), bits=16, sample_format=2
    ),
    "32 bits": lambda path: saved(path, (RAMP * 1e9 - 1000).astype(np.int32)),
    "32 bits of which 12 are used": lambda path: saved(path, (RAMP * 4095).astype(np.int32)),
    "unsigned 32 bits": lambda path: tiff(path, (RAMP * 4.2e9).astype(np.uint32), bits=32),
    "float to 1": lambda path: saved(path, RAMP.astype(np.float32)),
    "float to 255": lambda path: saved(path, (RAMP * 255).astype(np.float32)),
    "float of metres": lambda path: saved(path, (RAMP * 4000 - 400).astype(np.float32)),
}


@pytest.mark.parametrize("make", FULL.values(), ids=FULL)
def test_a_file_on_its_own_goes_from_black_to_white(tmp_path, make):
    tones = grey(make(tmp_path / "a.tif"))
    assert (tones.min(), tones.max()) == (0, 255)
    assert len(np.unique(tones)) > 250
    assert (np.diff(tones.ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -3.4e38, -9999.0])
def test_a_pixel_without_data_does_not_make_all_others_black(tmp_path, value):
    values = (RAMP * 100 + 300).astype(np.float32)
    values[5, 5] = value
    tones = grey(saved(tmp_path / "a.tif", values))
    assert len(np.unique(tones)) > 250
    assert tones[5, 5] == (255 if value == np.inf else 0)


def test_declared_missing_data_may_be_most_of_a_picture(tmp_path):
    values = (RAMP * 100 + 300).astype(np.float32)
    values[4:] = -9999
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113] = "-9999"  # GDAL_NODATA
    tones = grey(saved(tmp_path / "a.tif", values, tiffinfo=tags))
    assert len(np.unique(tones[:4])) > 100
    assert (tones[4:] == 0).all()


def test_where_zero_is_white_the_picture_is_no_negative(tmp_path):
    values = (RAMP * 65535).astype(np.uint16)
    tones = grey(tiff(tmp_path / "a.tif", values, bits=16, photometric=0))
    assert tones[0, 0] == 255
    assert tones[-1, -1] == 0


def test_a_transparent_colour_of_16_bits_is_white(tmp_path):
    values = (RAMP * 60000 + 5000).astype(np.uint16)
    values[10:20] = 1234
    tones = grey(saved(tmp_path / "a.png", values, transparency=1234))
    assert (tones[10:20] == 255).all()
    assert tones[0, 0] < 30


def test_a_picture_behind_an_alpha_of_zero_is_seen(tmp_path):
    colours = np.dstack([RAMP * 255, RAMP * 255, RAMP * 0 + 9, RAMP * 0]).astype(np.uint8)
    pixels = np.asarray(open_image(saved(tmp_path / "a.png", colours)))
    assert np.array_equal(pixels, colours[..., :3])


@pytest.fixture
def xrays(tmp_path):
    """Twelve bits in files of sixteen; the classes differ in brightness alone."""
    for split, count in (("Train", 6), ("Val", 3)):
        for name, share in (("dense", 1.0), ("thin", 0.25)):
            for i in range(count):
                values = (RAMP * 4095 * share - i).clip(0).astype(np.uint16)
                saved(tmp_path / "xrays" / split / name / f"{i}.png", values)
    return tmp_path / "xrays"


def test_all_files_of_a_data_set_have_one_range_which_is_said(xrays, tmp_path, capsys):
    options = {"image_size": 28, "num_workers": 0, "cache_dir": tmp_path / "cache"}
    for _ in range(2):  # from the files, and from the cache
        dataset = make_dataloaders(xrays, **options)["train"].dataset
        assert "18 of 18" in (said := capsys.readouterr().out) and "4095 white" in said
        assert dataset.preprocessing["ranges"] == {"integer": [0.0, 4095.0]}
        assert dataset.images[0].max() == 255
        assert dataset.images[6].max() == 64  # a quarter: "thin" stays dark
        for i in range(len(dataset)):
            assert np.array_equal(dataset.images[i], dataset.images.decode(i))


def test_with_and_without_a_cache_and_with_workers_pixels_are_the_same(xrays, tmp_path):
    paths = sorted(xrays.rglob("*.png")) * 4  # enough for workers
    expected = None
    for options in ({"cache_size_gb": 0}, {"num_workers": 2}, {}, {"cache_dir": "/dev/null/x"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a cache that cannot be written
            images, reasons = decode_once(paths, 32, **{"cache_dir": tmp_path / "c", **options})
        assert not reasons and images.ranges == {"integer": [0.0, 4095.0]}
        expected = expected or [*images]
        assert all(np.array_equal(*pair) for pair in zip(images, expected, strict=True))


def test_another_file_that_changes_the_range_changes_all_pixels(xrays, tmp_path):
    paths = sorted(xrays.rglob("*.png"))
    decode_once(paths, 32, cache_dir=tmp_path / "cache")
    saved(xrays / "bright.png", (RAMP * 16383).astype(np.uint16))
    images, _ = decode_once([*paths, xrays / "bright.png"], 32, cache_dir=tmp_path / "cache")
    assert images.ranges == {"integer": [0.0, 16383.0]}
    assert images[0].max() == 64


def test_images_of_8_bits_need_no_range(photos, tmp_path, capsys):
    dataset = make_dataloaders(photos, image_size=28, num_workers=0)["train"].dataset
    assert "ranges" not in dataset.preprocessing
    assert "beyond" not in capsys.readouterr().out


def test_a_damaged_file_among_them_is_left_out_with_its_reason(xrays, tmp_path):
    path = xrays / "Train" / "thin" / "0.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.warns(UserWarning, match=r"1 of 18 files cannot be read"):
        dataset = make_dataloaders(xrays, image_size=28, num_workers=0)["train"].dataset
    assert len(dataset) == 11


@pytest.mark.parametrize("val", [None, lambda image: torch.zeros(3, 28, 28)])
def test_a_model_sees_one_image_as_in_its_data_set(xrays, tmp_path, val):
    dataset = make_dataloaders(xrays, image_size=28, val=val, num_workers=0)["val"].dataset
    path = save_checkpoint(
        tmp_path / "a.pt",
        network(),
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
    )
    seen = []
    predictor = Predictor.load(path, network(), transform=eval_transform(28))
    predictor.transform = lambda image: seen.append(np.array(image)) or torch.zeros(3, 28, 28)
    files = [dataset.images.paths[i] for i in range(len(dataset))]
    predictor.predict(files[-1])
    predictor.predict(Image.open(files[-1]))
    predictor.predict_folder(xrays / "Val" / "thin", num_workers=0)
    expected = DecodedImages(files, 32, ranges={"integer": [0.0, 4095.0]})
    assert seen[0].max() == 64
    for pixels, i in zip(seen, [5, 5, 3, 4, 5], strict=True):
        assert np.array_equal(pixels, expected[i])


def _opened(path):
    return Image.open(path).point(lambda value: value / 32).convert("L")


def test_a_function_of_ones_own_reads_files_instead(xrays, tmp_path):
    options = {"image_size": 28, "num_workers": 0, "cache_dir": tmp_path / "cache"}
    assert make_dataloaders(xrays, **options)["train"].dataset.images[6].max() == 64
    own = make_dataloaders(xrays, open_image=_opened, **options)["train"].dataset
    assert own.images[6].max() == 31
    assert "ranges" not in own.preprocessing
    predictor = Predictor(network(), own.classes, eval_transform(28), open_image=_opened)
    assert np.array_equal(predictor._pixels(own.images.paths[6]), own.images[6])
