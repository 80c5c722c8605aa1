"""Pictures of words in place of photographs: "image not found", a page of text, a slide."""

import numpy as np
from PIL import Image, ImageFilter

_SIDE = 256  # pixels of the short side at which an image is measured
_NEAR = 8  # levels of 256 by which a pixel may differ from the background, in each channel
_FLAT = 2  # levels of 256 by which neighbours of the same colour may differ
_STROKE = 9  # pixels: what is written is thinner


def background_share(image: Image.Image) -> float:
    """The share of an RGB image that has its background colour, if it shows words; else 0.

    Words, or a plain symbol, are one ink on one flat background: all colours lie on a line that
    begins at that of the background (smooth edges, shadows of a scan), most neighbours are equal,
    and strokes are thin. A photograph has more colours, noise, or a subject that is no stroke. The
    limits are those that separate drawn placeholders and pages from 7,000 photographs, textures and
    line drawings; dim or wrinkled scans are not found.
    """
    if (scale := _SIDE / min(image.size)) < 1:
        size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
    histogram = np.asarray(image.convert("L").histogram()) / (image.width * image.height)
    if np.convolve(histogram, np.ones(2 * _NEAR + 1)).max() < 0.6:  # most photographs end here
        return 0.0
    pixels = np.asarray(image).astype(np.int16)
    codes = (pixels >> 3) @ np.array([1 << 10, 1 << 5, 1], np.int16)
    background = np.median(pixels[codes == np.bincount(codes.ravel()).argmax()], axis=0)
    is_ink = np.abs(pixels - background).max(axis=2) > _NEAR
    share = 1 - float(is_ink.mean())
    if share < 0.65 or is_ink.sum() < 20:
        return 0.0
    ink = (pixels[is_ink] - background) / 255
    values, axes = np.linalg.eigh(ink.T @ ink / len(ink))  # the line is the last axis
    has_one_ink = values[:2].sum() < 0.055**2 and values[2] > 0.2**2
    has_one_ink &= abs(np.sign(ink @ axes[:, 2]).mean()) > 0.9  # all of it on one side
    flat = (np.abs(np.diff(pixels, axis=1)).max(axis=2) <= _FLAT).mean()
    opened = Image.fromarray(is_ink.astype(np.uint8) * 255)
    opened = opened.filter(ImageFilter.MinFilter(_STROKE)).filter(ImageFilter.MaxFilter(_STROKE))
    is_thin = (np.asarray(opened) > 0).sum() < 0.2 * is_ink.sum()
    is_symbol = share > 0.85 and flat > 0.95
    return share if has_one_ink and ((is_thin and flat > 0.62) or is_symbol) else 0.0
