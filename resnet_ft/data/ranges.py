"""Numbers that are no 8-bit colours: which of them become black and white.

Microscopes, X-ray detectors, cameras and elevation models write 10 or 12 bits into 16, negative
numbers, or floating point. What is black and white is decided once per data set, since brightness
may be what tells its classes apart, and kept with the model.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from resnet_ft.errors import ImageError

Ranges = Mapping[str, list[float]]  # "integer" or "float" -> the values of black and of white
KINDS = ("integer", "float")
_WHITES = {"integer": [2**bits - 1 for bits in (8, 10, 12, 14, 16)], "float": [1, 255]}
_USED = {"integer": 0, "float": 1 / 8}  # share of white that the values exceed; else it is no white
_OUTLIERS = 0.001  # share of the values that may be below black, or above white
_SAMPLE = 4096  # values per file
_TOGETHER = 2**24  # values per data set: 64 MB
_STRIP = 2**22  # pixels that are converted at a time: as float64, 32 MB
_NO_DATA = 1e30  # what is beyond marks missing data
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _GDAL_NODATA = 258, 262, 339, 42113  # tags of TIFF


class RangeUndecided(ImageError):
    """An image whose data set has to decide about its range; `values` are a sample of its own."""

    def __init__(self, kind: str, values: np.ndarray) -> None:
        super().__init__("The range of its values is not decided yet.", "")
        self.kind, self.values = kind, values


def is_deep(image: Image.Image) -> bool:
    """Whether an image holds grey values beyond 8 bits, which need a range."""
    return image.mode.startswith(("I", "F"))


def decide_range(kind: str, values: Iterable[np.ndarray]) -> list[float]:
    """The values of black and white for samples of images: [0, 4095] for integers of 12 bits.

    White is the smallest of 8, 10, 12, 14 and 16 bits, or 1 or 255 in floating point, that holds
    all but the largest thousandth. Other numbers, such as negative ones, are scaled from their
    0.1th to their 99.9th percentile.
    """
    together = np.concatenate([np.empty(0, np.float32), *values])
    together = together[:: 1 + len(together) // _TOGETHER]
    if not len(together):
        return [0.0, 1.0]
    # Rounded inwards, so that in a small image a single outlier does not count either.
    low = float(np.quantile(together, _OUTLIERS, method="higher"))
    high = float(np.quantile(together, 1 - _OUTLIERS, method="lower"))
    for white in _WHITES[kind]:
        if low >= 0 and _USED[kind] * white <= high <= white:
            return [0.0, float(white)]
    return [low, high] if high > low else [low, low + 1]


def eight_bit(
    image: Image.Image, ranges: Ranges | None = None, *, decided: bool = True
) -> Image.Image:
    """A deep image in 8-bit grey: by the range of its kind, or else by its own.

    Missing data are black, the transparent colour is white. Raises RangeUndecided with
    `decided=False`.
    """
    kind = "float" if image.mode == "F" else "integer"
    limits = (ranges or {}).get(kind)
    if limits is None or not decided:
        values = _sample(image)
        if not decided:
            raise RangeUndecided(kind, values)
        limits = decide_range(kind, [values])
    low, high = limits
    white_is_zero = _tags(image).get(_PHOTOMETRIC) == 0
    clear = image.info.get("transparency")
    grey = Image.new("L", image.size)
    for strip, values in _strips(image):
        shares = np.clip((values - low) / (high - low), 0, 1)
        shares = np.nan_to_num(1 - shares if white_is_zero else shares)
        if isinstance(clear, int):
            shares[values == clear] = 1
        grey.paste(Image.fromarray((255 * shares).round().astype(np.uint8)), strip)
    return grey


def _sample(image: Image.Image) -> np.ndarray:
    """Some finite values of an image, or its largest possible value where the file declares it."""
    bits = _tags(image).get(_BITS, (16,))[0]
    # Pillow scales PGM to 16 bits by the maximum that it declares.
    if image.mode != "F" and (image.format == "PPM" or bits < 16):
        return np.full(_SAMPLE, 2 ** min(bits, 16) - 1, np.float32)
    step = max(1, image.width * image.height // _SAMPLE) | 1  # odd: not one column of each row
    values = np.concatenate([values.ravel()[::step] for _, values in _strips(image)])
    return values[np.isfinite(values)].astype(np.float32)


def _strips(image: Image.Image) -> Iterator[tuple[tuple[int, int, int, int], np.ndarray]]:
    """The values of an image as float64 (NaN where data are missing), some rows at a time."""
    tags, rows = _tags(image), max(1, _STRIP // image.width)
    is_unsigned = tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,)
    missing = None
    with suppress(ValueError):
        missing = float(str(tags[_GDAL_NODATA]).strip("\0 ")) if _GDAL_NODATA in tags else None
    for top in range(0, image.height, rows):
        strip = 0, top, image.width, min(top + rows, image.height)
        values = np.asarray(image.crop(strip))
        if is_unsigned and image.mode == "I":  # Pillow has no mode for them: they wrapped round
            values = values.view(np.uint32)
        values = values.astype(np.float64)
        values[(values == missing) | (np.isfinite(values) & (np.abs(values) > _NO_DATA))] = np.nan
        yield strip, values


def _tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})
