"""What is wrong with real data sets, one of each, so that there is something to find."""

import shutil
import struct
import zlib
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageDraw, ImageFilter

_WEB_PAGE = "<!DOCTYPE html>\n<html><body><h1>404: this photograph has moved</h1></body></html>\n"
_JUNK = {
    ".DS_Store": b"\0\0\0\1Bud1",
    "Train/fish/Thumbs.db": b"\xd0\xcf\x11\xe0",
    "Train/fish/notes.txt": b"Fish 7 is my favourite.\n",
    "Train/fish/.ipynb_checkpoints/fish_000-checkpoint.jpg": b"\xff\xd8\xff",
    "__MACOSX/Train/fish/._fish_000.jpg": b"\0\5\x16\7",
}


def add_flaws(data_dir: Path, draw: Callable[[str], Image.Image]) -> None:
    """Add flawed images to a drawn data set, each named after its flaw, and what systems leave.

    `draw` takes the name of a class and returns another image of it at every call.
    """
    train, val = data_dir / "Train", data_dir / "Val"
    classes = cycle(["balloon", "fish", "flower"])
    for (name, change), class_name in zip(_UNUSUAL_PIXELS.items(), classes, strict=False):
        change(draw(class_name)).save(train / class_name / name, quality=90)
    for (name, write), class_name in zip(_UNUSUAL_FILES.items(), classes, strict=False):
        write(draw(class_name), train / class_name / name)

    draw("fish").save(train / "flower/flaw_mislabelled.jpg")
    draw("fish").save(train / "flaw_outside_of_any_class.jpg")
    draw("balloon").save(train / "balloon/flaw_duplicate.jpg")
    shutil.copy(train / "balloon/flaw_duplicate.jpg", train / "balloon/flaw_duplicate_copy.jpg")
    draw("fish").save(train / "fish/flaw_in_two_classes.jpg")
    shutil.copy(train / "fish/flaw_in_two_classes.jpg", train / "balloon/flaw_in_two_classes.jpg")
    leaked = draw("flower")
    leaked.save(train / "flower/flaw_also_in_val.jpg", quality=90)
    smaller = leaked.resize([round(0.93 * side) for side in leaked.size])
    smaller.save(val / "flower/flaw_also_in_train.jpg", quality=60)
    _add_junk(data_dir)


def _add_junk(data_dir: Path) -> None:
    for name, content in _JUNK.items():
        path = data_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # these names are not only ours
            path.write_bytes(content)


def _brightness(image: Image.Image, darkest: float, brightest: float) -> Image.Image:
    """The tones squeezed into a range from `darkest` to `brightest`, as shares of white."""
    tones = np.linspace(255 * darkest, 255 * brightest, 256).round().astype(int).tolist()
    return image.point(tones * 3)


def _sixteen_bit(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)


def _cut_out(image: Image.Image) -> Image.Image:
    """An ellipse of the image; what is around it is transparent."""
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).ellipse([0, 0, *image.size], fill=255)
    image.putalpha(mask)
    return image


_UNUSUAL_PIXELS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "flaw_tiny.jpg": lambda image: image.resize((14, 12)),
    "flaw_extreme_aspect_ratio.jpg": lambda image: image.resize((1600, 50)),
    "flaw_blank.jpg": lambda image: Image.new("RGB", image.size, (118, 132, 150)),
    "flaw_nearly_black.jpg": lambda image: _brightness(image, 0, 0.12),
    "flaw_nearly_white.jpg": lambda image: _brightness(image, 0.88, 1),
    "flaw_blurred.jpg": lambda image: image.filter(ImageFilter.GaussianBlur(8)),
    "flaw_grey.jpg": lambda image: image.convert("L"),
    "flaw_cmyk.jpg": lambda image: image.convert("CMYK"),
    "flaw_16_bit.png": _sixteen_bit,
    "flaw_transparent.png": _cut_out,
}


def _truncated(image: Image.Image, path: Path) -> None:
    image.save(path, quality=90)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _stored_sideways(image: Image.Image, path: Path) -> None:
    """As a telephone held upright saves it: the EXIF orientation 6 turns it back."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, quality=90, exif=exif)


def _animated(image: Image.Image, path: Path) -> None:
    frames = [ImageChops.offset(image, 6 * i, 0) for i in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=200, loop=0)


def _decompression_bomb(path: Path) -> None:
    """A PNG of 50,000 x 50,000 pixels by its header: unpacked, it would fill 7 GB of memory."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in chunks:
            checksum = zlib.crc32(kind + data)
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum))


_UNUSUAL_FILES: dict[str, Callable[[Image.Image, Path], object]] = {
    "flaw_empty.jpg": lambda image, path: path.write_bytes(b""),
    "flaw_web_page.jpg": lambda image, path: path.write_text(_WEB_PAGE),
    "flaw_unreadable.heic": lambda image, path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99)),
    "flaw_really_a_png.jpg": lambda image, path: image.save(path, "PNG"),
    "flaw_decompression_bomb.png": lambda image, path: _decompression_bomb(path),
    "flaw_truncated.jpg": _truncated,
    "flaw_stored_sideways.jpg": _stored_sideways,
    "flaw_animated.gif": _animated,
}
