"""A small data set that the library draws itself, so that everything runs without a network."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from resnet_ft.data.drawing import SUBJECTS, Pen
from resnet_ft.data.flaws import add_flaws

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
