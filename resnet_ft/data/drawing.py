"""What the sample data set shows: a balloon, a fish, a flower, a mushroom, each a little different.

A subject takes a random generator and returns the two colours of its background, from top to
bottom, and a function that paints it with a Pen, in units of the subject's own radius.
"""

import colorsys
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

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
