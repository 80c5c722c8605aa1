"""One file to one upright RGB image, whatever the format, the mode or the camera's orientation."""

import importlib.util
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from resnet_ft.errors import ImageError

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
    | {".heic", ".heif"}
)
# ISO/IEC 23008-12: a file of this kind begins with a box "ftyp" that names one of these brands.
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"})

# What the EXIF standard's orientations (tag 274) ask for.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP = 2**22  # pixels that are converted at a time: as float64, 32 MB
_READS_HEIC = importlib.util.find_spec("pillow_heif") is not None

if _READS_HEIC:
    from pillow_heif import register_heif_opener

    register_heif_opener()


def open_image(file: str | Path | IO[bytes]) -> Image.Image:
    """Read one image, upright by its EXIF orientation, as an 8-bit RGB image of shape (H, W).

    Takes a path or an open binary file. Grey, palette, CMYK and 16-bit images are converted with
    their tones kept, transparent ones are laid on white, an animation gives its first frame.
    Raises ImageError, which names the file and the reason, for whatever cannot be read whole.
    """
    with opened_image(file) as image:
        image.load()
        return upright_rgb(image)


@contextmanager
def opened_image(file: str | Path | IO[bytes]) -> Iterator[Image.Image]:
    """The image of a file; whatever goes wrong while it is open becomes an ImageError."""
    try:
        _refuse_special(file)
        with Image.open(file, formats=readable_formats()) as image:
            yield image
    except Exception as error:  # a decoder can fail in any way on a broken file
        reason = unreadable_because(file, error)
        raise ImageError(
            f"{file}: {reason}. Replace the file, or take it out of the data set.", reason
        ) from error


@cache
def readable_formats() -> list[str]:
    """What Pillow reads but EPS: it would hand that to Ghostscript, to run as a program."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


def _refuse_special(file: str | Path | IO[bytes]) -> None:
    """Opening a pipe or a device could wait for ever."""
    if isinstance(file, str | Path) and not stat.S_ISREG(os.stat(file).st_mode):
        raise IsADirectoryError("not a file") if os.path.isdir(file) else OSError("not a file")


def unreadable_because(file: str | Path | IO[bytes], error: Exception) -> str:
    """In a few words, why reading this file ended in this error."""
    is_path = isinstance(file, str | Path)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if is_path and os.path.isfile(file) and os.path.getsize(file) == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        if not _READS_HEIC and _is_heic(file):
            return "HEIC needs pillow-heif (pip install pillow-heif); or save it as JPEG"
        return "not an image in a format that can be read"
    return str(error) or f"it cannot be decoded ({type(error).__name__})"


def _is_heic(file: str | Path | IO[bytes]) -> bool:
    if isinstance(file, str | Path):
        with open(file, "rb") as opened:
            return _is_heic(opened)
    file.seek(4)
    return file.read(4) == b"ftyp" and file.read(4) in _HEIC_BRANDS


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image as `open_image` returns it, from one that is open already."""
    return turned_upright(to_rgb(image), orientation(image))


def turned_upright(image: Image.Image, turn: int) -> Image.Image:
    """The image turned as its `orientation` asks for."""
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB, on white where it is transparent."""
    if image.mode.startswith(("I", "F")):
        image = _eight_bit(image)
    if image.has_transparency_data:
        image = image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy takes memory


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. (Pillow's exif_transpose also rewrites EXIF: it can fail.)"""
    with suppress(Exception):  # EXIF that cannot be parsed says nothing about the orientation
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in range(1, 9) else 1
    return 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an open image once it is upright; its header is enough."""
    size = image.size
    if image.format == "TIFF":  # some versions of Pillow turn the size of these alone
        size = image.tag_v2[256], image.tag_v2[257]
    return size[::-1] if orientation(image) >= 5 else size


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floating point, to 8 bits: black stays black, white white.

    Integers up to 65535 are taken as 16-bit and floats up to 1 as a share of white; whatever is
    brighter is scaled by its own maximum.
    """
    usual = 1.0 if image.mode == "F" else 65535.0
    rows = max(1, _STRIP // image.width)
    strips = [
        (0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)
    ]
    white = max(
        usual, *(float(np.nanmax(np.asarray(image.crop(strip)), initial=0.0)) for strip in strips)
    )
    grey = Image.new("L", image.size)
    for strip in strips:
        scaled = np.nan_to_num(np.asarray(image.crop(strip), dtype=np.float64) / white) * 255
        grey.paste(Image.fromarray(np.clip(scaled.round(), 0, 255).astype(np.uint8)), strip)
    return grey


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
