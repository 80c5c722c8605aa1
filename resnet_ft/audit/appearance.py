"""What an image looks like, in a few numbers: light, sharpness, colour, and what it resembles."""

import imagehash
import numpy as np
from PIL import Image, ImageFilter

SIDE = 256  # pixels of the short side at which an image is looked at, about what a network sees
THUMBNAIL = 24  # pixels of a thumbnail's side: enough to tell one photograph from another
_FEW = 72  # pixels
_TAIL = 0.02  # share of the pixels that may be darker than `darkest`, or brighter than `brightest`


def appearance(image: Image.Image) -> dict[str, float | str | bytes]:
    """Measure an upright RGB image, at a short side of 256 pixels where it is larger.

    Shares of white, from 0 to 1: `brightness` (the mean), `darkest` and `brightest` (all but the
    outer 2% of the pixels lie between them), `contrast` (their difference), and `colour` (how far
    the most colourful spot is from grey). `sharpness`, from 0 to 1: see `_sharpness`.
    `perceptual_hash`: 64 bits in hexadecimal, which hardly change when an image is scaled or
    compressed (https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html).
    `thumbnail`: the bytes of 24 x 24 RGB pixels.
    """
    grey = _at_most(image.convert("L"), SIDE)
    shares = np.cumsum(grey.histogram()) / (grey.width * grey.height)
    darkest, brightest = np.searchsorted(shares, [_TAIL, 1 - _TAIL]) / 255
    small = image.resize((_FEW, _FEW), Image.Resampling.BOX)  # fast, and enough for what follows
    thumbnail = small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return {
        "brightness": float(np.asarray(grey).mean()) / 255,
        "darkest": float(darkest),
        "brightest": float(brightest),
        "contrast": float(brightest - darkest),
        "colour": float(np.ptp(np.asarray(thumbnail), axis=2).max()) / 255,
        "sharpness": _sharpness(grey),
        "perceptual_hash": str(imagehash.phash(small)),
        "thumbnail": thumbnail.tobytes(),
    }


def _at_most(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    if scale >= 1:
        return image
    size = tuple(max(1, round(scale * length)) for length in image.size)
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2)


def _sharpness(grey: Image.Image) -> float:
    """Which share of the differences between neighbouring pixels a blur takes away, from 0 to 1.

    A sharp image loses most of them, a blurred one has little to lose: the measure of Crete et al.,
    "The blur effect: perception and estimation with a new no-reference perceptual blur metric",
    2007, turned round. It depends on neither light nor contrast; 1 for an image without any edge.
    """
    differences, blurred = _differences(grey), _differences(grey.filter(ImageFilter.BoxBlur(3)))
    total = differences.sum(dtype=np.int64)
    lost = np.maximum(differences - blurred, 0).sum(dtype=np.int64)
    return float(lost / total) if total else 1.0


def _differences(grey: Image.Image) -> np.ndarray:
    pixels = np.asarray(grey).astype(np.int16)
    vertical, horizontal = np.abs(np.diff(pixels, axis=0)), np.abs(np.diff(pixels, axis=1))
    return np.concatenate([vertical.ravel(), horizontal.ravel()])
