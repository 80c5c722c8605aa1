"""Photographs at the size that training needs, without decoding more of them than that takes."""

from pathlib import Path
from typing import IO

from PIL import Image

from resnet_ft.data.images import opened_image, orientation, to_rgb, turned_upright

# A reduced JPEG keeps this many times the wanted side, so that the resize has enough to work on.
_SPARE = 2
_LONGEST = 16  # times as long as wide: what is longer would take too much memory when enlarged


def open_resized(file: str | Path | IO[bytes], side: int) -> Image.Image:
    """`open_image` with the short side at `side` pixels, as `resized` makes it, but faster.

    A large JPEG is decoded at a half, a quarter or an eighth of its size, with at least twice
    `side` left: of a 12-megapixel photograph that takes half the time, and the final antialiased
    resize makes nearly the same of it. Raises ImageError like `open_image`.
    """
    with opened_image(file) as image:
        whole = image.size
        image.draft(None, (_SPARE * side, _SPARE * side))
        image.load()
        if image.format == "TIFF":  # Pillow turns these upright as it loads them
            whole = image.size
        turn = orientation(image)
        return turned_upright(_resized(to_rgb(image), side, whole), turn)


def resized(image: Image.Image, side: int) -> Image.Image:
    """An image whose short side is `side` pixels, or no larger than it was.

    Of an image more than 16 times as long as wide, the middle part is kept.
    """
    return _resized(image, side, image.size)


def _resized(image: Image.Image, side: int, whole: tuple[int, int]) -> Image.Image:
    """`image` is what is decoded of one of size `whole`, perhaps at a reduced scale."""
    short = min(whole)
    kept = [min(length, _LONGEST * short) for length in whole]
    if kept == list(whole) == list(image.size) and short <= side:
        return image
    side = min(side, short)
    size = tuple(side * length // short for length in kept)  # rounded down, as torchvision does
    # A reduced JPEG has its last row or column only in part: the box says where the image ends.
    reduced = [round(a / b) for a, b in zip(whole, image.size, strict=True)]
    edges = [
        ((a - b) / 2 / c, (a + b) / 2 / c) for a, b, c in zip(whole, kept, reduced, strict=True)
    ]
    (left, right), (top, bottom) = edges
    return image.resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
