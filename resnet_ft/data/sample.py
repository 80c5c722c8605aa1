"""A small data set that the library draws itself, so that everything runs offline.

To add a class, write its function and name it in `_SUBJECTS`, after the others.
"""

import colorsys
import io
import math
import shutil
import struct
import zlib
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageDraw, ImageFilter

from resnet_ft.files import user_path

_COUNTS = {"Train": 40, "Val": 16, "Test": 12}
_FLAWED_COUNTS = {"Train": 24, "Val": 8}
_RARE_COUNTS = {"Train": 4, "Val": 2}  # of mushrooms, in the flawed data set
_SUPERSAMPLE = 3  # drawn this much larger and shrunk, which smooths every edge

_Colour = tuple[int, ...]
_Points = np.ndarray | list[tuple[float, float]]


def make_sample_dataset(destination: str | Path, *, flawed: bool = False, seed: int = 0) -> Path:
    """Draw balloons, fish, flowers and mushrooms in `Train`, `Val` and `Test` folders.

    JPEGs of 160 to 256 pixels per side; the same `seed` draws the same images. A `flawed` data set
    is smaller, has few mushrooms, no `Test`, and one of each flaw that real data sets have, in a
    file named after it: `flaw_blurred.jpg`. Give an empty folder: existing files of the same names
    are overwritten. Returns `destination`.
    """
    destination = user_path(destination)
    for class_number, class_name in enumerate(_SUBJECTS):
        counts = _COUNTS
        if flawed:
            counts = _RARE_COUNTS if class_name == "mushroom" else _FLAWED_COUNTS
        for split_number, (split, count) in enumerate(counts.items()):
            folder = destination / split / class_name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                rng = np.random.default_rng([seed, class_number, split_number, i])
                _draw(class_name, rng).save(folder / f"{class_name}_{i:03d}.jpg", quality=90)
    if flawed:
        _add_flaws(destination, np.random.default_rng([seed, len(_SUBJECTS)]))
    return destination


def _draw(class_name: str, rng: np.random.Generator) -> Image.Image:
    """A subject before a background, with the grain of a camera."""
    width, height = rng.integers(160, 257, 2).tolist()
    pen = _Pen()
    top, bottom = _SUBJECTS[class_name](rng, pen)
    rows = np.linspace(0, 1, height)[:, None, None]
    gradient = np.array(top) * (1 - rows) + np.array(bottom) * rows
    image = Image.fromarray(np.repeat(gradient, width, axis=1).astype(np.uint8))
    for _ in range(rng.integers(6, 14)):  # soft spots of light
        x, y, shine = rng.random() * width, rng.random(), rng.uniform(0, 0.3)
        colour = np.array(top if y < 0.5 else bottom) * (1 - shine) + 255 * shine
        radius = min(width, height) * rng.uniform(0.02, 0.1)
        box = [x - radius, y * height - radius, x + radius, y * height + radius]
        ImageDraw.Draw(image).ellipse(box, tuple(colour.astype(int).tolist()))
    image = image.filter(ImageFilter.GaussianBlur(0.02 * min(width, height)))

    large = (_SUPERSAMPLE * width, _SUPERSAMPLE * height)
    image = image.resize(large, Image.Resampling.BILINEAR)
    centre = (large[0] * rng.uniform(0.35, 0.65), large[1] * rng.uniform(0.35, 0.55))
    pen.paint(image, centre, min(large) * rng.uniform(0.2, 0.36))
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    grain = rng.normal(0, rng.uniform(2, 7), (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


class _Pen:
    """Notes shapes around the point (0, 0), and paints them later at any place and scale."""

    def __init__(self) -> None:
        self.side = 1  # -1 mirrors what follows
        self._shapes: list[tuple[str, np.ndarray, _Colour, float]] = []

    def polygon(self, points: _Points, colour: _Colour) -> None:
        self._shapes.append(("polygon", np.array(points) * (self.side, 1), colour, 0))

    def line(self, points: _Points, colour: _Colour, width: float) -> None:
        self._shapes.append(("line", np.array(points) * (self.side, 1), colour, width))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: _Colour) -> None:
        corners = [(self.side * x - rx, y - ry), (self.side * x + rx, y + ry)]
        self._shapes.append(("ellipse", np.array(corners), colour, 0))

    def paint(self, image: Image.Image, centre: tuple[float, float], radius: float) -> None:
        draw = ImageDraw.Draw(image)
        for kind, points, colour, width in self._shapes:
            pixels = [(x, y) for x, y in np.array(centre) + points * radius]
            if kind == "line":
                draw.line(pixels, colour, max(1, round(width * radius)), "curve")
            else:
                getattr(draw, kind)(pixels, colour)


_Colours = tuple[_Colour, _Colour]  # of the background, at the top and at the bottom


def _balloon(rng: np.random.Generator, pen: _Pen) -> _Colours:
    stripes = [_colour(rng, (0, 1), 0.75, 0.9) for _ in range(2)]
    pen.line([(-0.6, 0.7), (-0.12, 1.5)], (90, 70, 50), 0.03)
    pen.line([(0.6, 0.7), (0.12, 1.5)], (90, 70, 50), 0.03)
    pen.polygon([(-0.86, 0.4), (0.86, 0.4), (0.2, 1.15), (-0.2, 1.15)], stripes[0])
    for i, width in enumerate((1, 0.78, 0.52, 0.22)):
        pen.ellipse(0, -0.1, width, 1, stripes[i % 2])
    pen.polygon([(-0.2, 1.5), (0.2, 1.5), (0.16, 1.8), (-0.16, 1.8)], (120, 84, 50))
    return _colour(rng, (0.52, 0.66), 0.35, 0.85), _colour(rng, (0.04, 0.14), 0.25, 0.97)


def _fish(rng: np.random.Generator, pen: _Pen) -> _Colours:
    body, stripe = _colour(rng, (0, 0.2), 0.85, 0.95), _colour(rng, (0, 1), 0.2, 0.95)
    pen.side = int(rng.choice([-1, 1]))
    pen.polygon([(0.8, 0), (1.5, -0.5), (1.35, 0), (1.5, 0.5)], body)
    pen.polygon([(-0.3, -0.45), (0.5, -0.85), (0.6, -0.3)], stripe)
    pen.ellipse(0, 0, 1, 0.58, body)
    for x in (-0.15, 0.35):
        pen.polygon([(x, -0.48), (x + 0.2, -0.48), (x + 0.14, 0.48), (x - 0.06, 0.48)], stripe)
    pen.ellipse(-0.6, -0.15, 0.13, 0.13, (250, 250, 250))
    pen.ellipse(-0.62, -0.15, 0.07, 0.07, (20, 20, 30))
    for i in range(3):
        pen.ellipse(-(1.1 + 0.1 * i), -0.4 - 0.4 * i, 0.1, 0.1, (210, 236, 245))
    return _colour(rng, (0.47, 0.6), 0.6, 0.8), _colour(rng, (0.55, 0.66), 0.8, 0.4)


def _flower(rng: np.random.Generator, pen: _Pen) -> _Colours:
    hues = ((0.76, 0.99), (0.0, 0.05), (0.12, 0.16))[rng.integers(3)]
    petal = _colour(rng, hues, 0.6, 0.97)
    shade = tuple(round(0.82 * channel) for channel in petal)
    count, turn = int(rng.integers(5, 11)), rng.random()
    pen.line([(0, 0), (0.1, 1.2), (0, 3)], (58, 112, 48), 0.1)
    pen.polygon([(0.05, 1.7), (0.8, 1.1), (0.5, 1.7)], (72, 138, 60))
    arc = np.linspace(0, 2 * math.pi, 24)
    for length, colour in ((1.0, shade), (0.9, petal)):
        for i in range(count):  # a narrow ellipse from the centre outwards
            along, across = length * (0.55 + 0.45 * np.cos(arc)), 0.26 * np.sin(arc)
            angle = 2 * math.pi * (i + turn) / count
            cosine, sine = math.cos(angle), math.sin(angle)
            turned = along * cosine - across * sine, along * sine + across * cosine
            pen.polygon(np.stack(turned, axis=1), colour)
    pen.ellipse(0, 0, 0.32, 0.32, (247, 197, 58))
    pen.ellipse(0, 0, 0.18, 0.18, (214, 140, 40))
    return _colour(rng, (0.2, 0.36), 0.35, 0.8), _colour(rng, (0.24, 0.38), 0.6, 0.4)


def _mushroom(rng: np.random.Generator, pen: _Pen) -> _Colours:
    cap = _colour(rng, ((0.97, 1.0), (0.03, 0.08))[rng.integers(2)], 0.8, 0.8)
    ranges = ((-0.7, 0.7), (-0.75, -0.15), (0.07, 0.15))  # of the spots: x, y and size
    spots = np.stack([rng.uniform(*limits, 7) for limits in ranges], axis=1)
    pen.polygon([(-0.28, -0.1), (0.28, -0.1), (0.38, 1.3), (-0.38, 1.3)], (238, 228, 208))
    pen.ellipse(0, 0, 1.06, 0.2, (222, 208, 184))
    arc = np.linspace(0, math.pi, 40)
    pen.polygon(np.stack([1.06 * np.cos(arc), -np.sin(arc)], axis=1), cap)
    for x, y, size in spots:
        if math.hypot(x, y) + size < 0.95:
            pen.ellipse(x, y, size, size, (246, 240, 228))
    return _colour(rng, (0.16, 0.34), 0.35, 0.5), _colour(rng, (0.06, 0.1), 0.55, 0.3)


_SUBJECTS = {"balloon": _balloon, "fish": _fish, "flower": _flower, "mushroom": _mushroom}


def _colour(
    rng: np.random.Generator, hues: tuple[float, float], saturation: float, value: float
) -> _Colour:
    hue = rng.uniform(*hues)
    saturation, value = saturation * rng.uniform(0.8, 1), value * rng.uniform(0.85, 1)
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))


def _add_flaws(data_dir: Path, rng: np.random.Generator) -> None:
    """Add flawed images to a drawn data set, each named after its flaw, and what systems leave."""
    train, val = data_dir / "Train", data_dir / "Val"
    classes = cycle(["balloon", "fish", "flower"])
    for (name, flaw), class_name in zip(_FLAWS.items(), classes, strict=False):
        path, flawed = train / class_name / name, flaw(_draw(class_name, rng))
        if isinstance(flawed, bytes):
            path.write_bytes(flawed)
        else:
            flawed.save(path, quality=90)

    _draw("fish", rng).save(train / "flower/flaw_mislabelled.jpg")
    _draw("fish", rng).save(train / "flaw_outside_of_any_class.jpg")
    _draw("balloon", rng).save(train / "balloon/flaw_duplicate.jpg")
    shutil.copy(train / "balloon/flaw_duplicate.jpg", train / "balloon/flaw_duplicate_copy.jpg")
    _draw("fish", rng).save(train / "fish/flaw_in_two_classes.jpg")
    shutil.copy(train / "fish/flaw_in_two_classes.jpg", train / "balloon/flaw_in_two_classes.jpg")
    leaked = _draw("flower", rng)
    leaked.save(train / "flower/flaw_also_in_val.jpg", quality=90)
    smaller = leaked.resize([round(0.93 * side) for side in leaked.size])
    smaller.save(val / "flower/flaw_also_in_train.jpg", quality=60)
    for name, content in _JUNK.items():
        path = data_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # it may be a file of the user
            path.write_bytes(content)


def _cut_out(image: Image.Image) -> Image.Image:
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).ellipse([0, 0, *image.size], fill=255)
    image.putalpha(mask)
    return image


def _encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _truncated(image: Image.Image) -> bytes:
    content = _encoded(image, "JPEG", quality=90)
    return content[: len(content) // 2]


def _stored_sideways(image: Image.Image) -> bytes:
    """As a telephone held upright saves it: the EXIF orientation 6 turns it back."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return _encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=exif)


def _animated(image: Image.Image) -> bytes:
    first, *others = [ImageChops.offset(image, 6 * i, 0) for i in range(4)]
    return _encoded(first, "GIF", save_all=True, append_images=others, duration=200, loop=0)


def _decompression_bomb(_: Image.Image) -> bytes:
    """A PNG of 50,000 x 50,000 pixels by its header: unpacked, it would fill 7 GB of memory."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


_WEB_PAGE = b"<!DOCTYPE html>\n<html><body><h1>404: this photograph has moved</h1></body></html>\n"
# An image that is saved, or the content of a file.
_FLAWS: dict[str, Callable[[Image.Image], Image.Image | bytes]] = {
    "flaw_tiny.jpg": lambda image: image.resize((14, 12)),
    "flaw_extreme_aspect_ratio.jpg": lambda image: image.resize((1600, 50)),
    "flaw_blank.jpg": lambda image: Image.new("RGB", image.size, (118, 132, 150)),
    "flaw_nearly_black.jpg": lambda image: image.point(lambda tone: 0.12 * tone),
    "flaw_nearly_white.jpg": lambda image: image.point(lambda tone: 224.4 + 0.12 * tone),
    "flaw_blurred.jpg": lambda image: image.filter(ImageFilter.GaussianBlur(8)),
    "flaw_grey.jpg": lambda image: image.convert("L"),
    "flaw_cmyk.jpg": lambda image: image.convert("CMYK"),
    "flaw_16_bit.png": lambda image: Image.fromarray(
        np.asarray(image.convert("L"), np.uint16) * 257
    ),
    "flaw_transparent.png": _cut_out,
    "flaw_empty.jpg": lambda _: b"",
    "flaw_web_page.jpg": lambda _: _WEB_PAGE,
    "flaw_unreadable.heic": lambda _: b"\0\0\0\x18ftypheic" + bytes(99),
    "flaw_really_a_png.jpg": lambda image: _encoded(image, "PNG"),
    "flaw_decompression_bomb.png": _decompression_bomb,
    "flaw_truncated.jpg": _truncated,
    "flaw_stored_sideways.jpg": _stored_sideways,
    "flaw_animated.gif": _animated,
}
_JUNK = {
    ".DS_Store": b"\0\0\0\1Bud1",
    "Train/fish/Thumbs.db": b"\xd0\xcf\x11\xe0",
    "Train/fish/notes.txt": b"Fish 7 is my favourite.\n",
    "Train/fish/.ipynb_checkpoints/fish_000-checkpoint.jpg": b"\xff\xd8\xff",
    "__MACOSX/Train/fish/._fish_000.jpg": b"\0\5\x16\7",
}
