"""A small data set that the library draws itself, so that everything runs without a network."""

import colorsys
import math
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Subject = tuple[Colour, Colour, Callable[["Pen"], None]]


class Pen:
    """Draws on an image in coordinates of its own: the centre is (0, 0), one unit the radius."""

    def __init__(self, image: Image.Image, centre: tuple[float, float], radius: float):
        self._draw = ImageDraw.Draw(image)
        self._centre = np.array(centre)
        self._radius = radius

    def polygon(self, points, fill: Colour) -> None:
        self._draw.polygon(self._pixels(points), fill)

    def line(self, points, fill: Colour, width: float) -> None:
        self._draw.line(self._pixels(points), fill, max(1, round(width * self._radius)), "curve")

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        self._draw.ellipse(self._pixels([(x - rx, y - ry), (x + rx, y + ry)]), fill)

    def _pixels(self, points) -> list[tuple[float, float]]:
        return [tuple(point) for point in self._centre + np.array(points) * self._radius]


def _balloon(rng: np.random.Generator) -> Subject:
    stripes = [_colour(rng, (0, 1), 0.75, 0.9) for _ in range(2)]

    def paint(pen: Pen) -> None:
        pen.line([(-0.6, 0.7), (-0.12, 1.5)], (90, 70, 50), 0.03)
        pen.line([(0.6, 0.7), (0.12, 1.5)], (90, 70, 50), 0.03)
        pen.polygon([(-0.86, 0.4), (0.86, 0.4), (0.2, 1.15), (-0.2, 1.15)], stripes[0])
        for i, width in enumerate((1, 0.78, 0.52, 0.22)):
            pen.ellipse(0, -0.1, width, 1, stripes[i % 2])
        pen.polygon([(-0.2, 1.5), (0.2, 1.5), (0.16, 1.8), (-0.16, 1.8)], (120, 84, 50))

    return _colour(rng, (0.52, 0.66), 0.35, 0.85), _colour(rng, (0.04, 0.14), 0.25, 0.97), paint


def _fish(rng: np.random.Generator) -> Subject:
    body, stripe = _colour(rng, (0, 0.2), 0.85, 0.95), _colour(rng, (0, 1), 0.2, 0.95)
    side = rng.choice([-1, 1])

    def paint(pen: Pen) -> None:
        def polygon(points, fill):
            pen.polygon([(side * x, y) for x, y in points], fill)

        polygon([(0.8, 0), (1.5, -0.5), (1.35, 0), (1.5, 0.5)], body)
        polygon([(-0.3, -0.45), (0.5, -0.85), (0.6, -0.3)], stripe)
        pen.ellipse(0, 0, 1, 0.58, body)
        for x in (-0.15, 0.35):
            polygon([(x, -0.48), (x + 0.2, -0.48), (x + 0.14, 0.48), (x - 0.06, 0.48)], stripe)
        pen.ellipse(-0.6 * side, -0.15, 0.13, 0.13, (250, 250, 250))
        pen.ellipse(-0.62 * side, -0.15, 0.07, 0.07, (20, 20, 30))
        for i in range(3):
            pen.ellipse(-side * (1.1 + 0.1 * i), -0.4 - 0.4 * i, 0.1, 0.1, (210, 236, 245))

    return _colour(rng, (0.47, 0.6), 0.6, 0.8), _colour(rng, (0.55, 0.66), 0.8, 0.4), paint


def _flower(rng: np.random.Generator) -> Subject:
    hues = ((0.76, 0.99), (0.0, 0.05), (0.12, 0.16))[rng.integers(3)]
    petal = _colour(rng, hues, 0.6, 0.97)
    shade = tuple(round(0.82 * channel) for channel in petal)
    count, turn = int(rng.integers(5, 11)), rng.random()

    def paint(pen: Pen) -> None:
        pen.line([(0, 0), (0.1, 1.2), (0, 3)], (58, 112, 48), 0.1)
        pen.polygon([(0.05, 1.7), (0.8, 1.1), (0.5, 1.7)], (72, 138, 60))
        for length, fill in ((1.0, shade), (0.9, petal)):
            for i in range(count):
                pen.polygon(_petal(2 * math.pi * (i + turn) / count, length), fill)
        pen.ellipse(0, 0, 0.32, 0.32, (247, 197, 58))
        pen.ellipse(0, 0, 0.18, 0.18, (214, 140, 40))

    return _colour(rng, (0.2, 0.36), 0.35, 0.8), _colour(rng, (0.24, 0.38), 0.6, 0.4), paint


def _petal(angle: float, length: float) -> np.ndarray:
    """A narrow ellipse from the centre outwards, turned by `angle`: points of shape (24, 2)."""
    t = np.linspace(0, 2 * math.pi, 24)
    along, across = length * (0.55 + 0.45 * np.cos(t)), 0.26 * np.sin(t)
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.stack([along * cosine - across * sine, along * sine + across * cosine], axis=1)


def _mushroom(rng: np.random.Generator) -> Subject:
    cap = _colour(rng, ((0.97, 1.0), (0.03, 0.08))[rng.integers(2)], 0.8, 0.8)
    spots = np.stack([rng.uniform(-0.7, 0.7, 7), rng.uniform(-0.75, -0.15, 7)], axis=1)
    sizes = rng.uniform(0.07, 0.15, 7)

    def paint(pen: Pen) -> None:
        pen.polygon([(-0.28, -0.1), (0.28, -0.1), (0.38, 1.3), (-0.38, 1.3)], (238, 228, 208))
        pen.ellipse(0, 0, 1.06, 0.2, (222, 208, 184))
        arc = np.linspace(0, math.pi, 40)
        pen.polygon(np.stack([1.06 * np.cos(arc), -np.sin(arc)], axis=1), cap)
        for (x, y), size in zip(spots, sizes, strict=True):
            if math.hypot(x, y) + size < 0.95:
                pen.ellipse(x, y, size, size, (246, 240, 228))

    return _colour(rng, (0.16, 0.34), 0.35, 0.5), _colour(rng, (0.06, 0.1), 0.55, 0.3), paint


SUBJECTS: dict[str, Callable[[np.random.Generator], Subject]] = {
    "balloon": _balloon,
    "fish": _fish,
    "flower": _flower,
    "mushroom": _mushroom,
}


def _colour(
    rng: np.random.Generator, hues: tuple[float, float], saturation: float, value: float
) -> Colour:
    red_green_blue = colorsys.hsv_to_rgb(
        rng.uniform(*hues), saturation * rng.uniform(0.8, 1), value * rng.uniform(0.85, 1)
    )
    return tuple(round(255 * channel) for channel in red_green_blue)


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


_COUNTS = {"Train": 40, "Val": 16, "Test": 12}
_FLAWED_COUNTS = {"Train": 24, "Val": 8}
_RARE_COUNTS = {"Train": 4, "Val": 2}  # of mushrooms, in the flawed data set
_SUPERSAMPLE = 3  # drawn this much larger and shrunk, which smooths every edge


def make_sample_dataset(destination: str | Path, *, flawed: bool = False, seed: int = 0) -> Path:
    """Draw balloons, fish, flowers and mushrooms in `Train`, `Val` and `Test` folders.

    JPEGs between 160 and 256 pixels a side; the same `seed` draws the same images. A `flawed` one
    is smaller, has hardly any mushrooms, no `Test`, and one of each flaw that real data sets have,
    in a file named after it: `flaw_blurred.jpg`. Give it a folder of its own: files that are there
    already under the same names are overwritten. Returns `destination`.
    """
    destination = Path(destination)
    for class_number, class_name in enumerate(SUBJECTS):
        for split_number, (split, count) in enumerate(_counts(class_name, flawed).items()):
            folder = destination / split / class_name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                rng = np.random.default_rng([seed, class_number, split_number, i])
                _draw(class_name, rng).save(folder / f"{class_name}_{i:03d}.jpg", quality=90)
    if flawed:
        rng = np.random.default_rng([seed, len(SUBJECTS)])
        add_flaws(destination, partial(_draw, rng=rng))
    return destination


def _counts(class_name: str, flawed: bool) -> dict[str, int]:
    if not flawed:
        return _COUNTS
    return _RARE_COUNTS if class_name == "mushroom" else _FLAWED_COUNTS


def _draw(class_name: str, rng: np.random.Generator) -> Image.Image:
    size = tuple(int(side) for side in rng.integers(160, 257, 2))
    large = tuple(side * _SUPERSAMPLE for side in size)
    top, bottom, paint = SUBJECTS[class_name](rng)
    image = _background(size, top, bottom, rng).resize(large, Image.Resampling.BILINEAR)
    centre = (large[0] * rng.uniform(0.35, 0.65), large[1] * rng.uniform(0.35, 0.55))
    paint(Pen(image, centre, min(large) * rng.uniform(0.2, 0.36)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    grain = rng.normal(0, rng.uniform(2, 7), (*size[::-1], 1))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def _background(size: tuple[int, int], top, bottom, rng: np.random.Generator) -> Image.Image:
    """A vertical gradient with soft spots of light."""
    width, height = size
    rows = np.linspace(0, 1, height)[:, None, None]
    gradient = np.array(top) * (1 - rows) + np.array(bottom) * rows
    image = Image.fromarray(np.repeat(gradient, width, axis=1).astype(np.uint8))
    for _ in range(rng.integers(6, 14)):
        x, y, shine = rng.random() * width, rng.random(), rng.uniform(0, 0.3)
        colour = np.array(top if y < 0.5 else bottom) * (1 - shine) + 255 * shine
        pen = Pen(image, (x, y * height), min(size) * rng.uniform(0.02, 0.1))
        pen.ellipse(0, 0, 1, 1, tuple(int(channel) for channel in colour))
    return image.filter(ImageFilter.GaussianBlur(0.02 * min(size)))
