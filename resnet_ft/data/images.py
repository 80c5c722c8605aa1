"""One file to one upright RGB image, whatever its format, its mode or the camera's orientation.

To read one more format, register its plug-in here, where Pillow has none.
"""

import importlib.util
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from resnet_ft.data import jpeg
from resnet_ft.data.ranges import Ranges, RangeUndecided, eight_bit, is_deep
from resnet_ft.errors import ImageError
from resnet_ft.files import fingerprint, user_path

_READS_HEIC = importlib.util.find_spec("pillow_heif") is not None
if _READS_HEIC:
    from pillow_heif import register_heif_opener

    register_heif_opener()


def readable_formats() -> list[str]:
    """All formats of Pillow but EPS, which it would hand to Ghostscript, to run as a program."""
    Image.init()
    return [name for name in Image.OPEN if name != "EPS"]


# Pillow only recognises the others: films, and data for which it has no decoder.
_IMAGE_FORMATS = set(readable_formats()) - {"MPEG", "BUFR", "GRIB", "HDF5", "WMF"}
IMAGE_EXTENSIONS = frozenset({".heic", ".heif", ".avif"}).union(  # also without their decoders
    extension for extension, name in Image.EXTENSION.items() if name in _IMAGE_FORMATS
)


def begins_like_image(head: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of a format that Pillow reads."""
    accepts = (Image.OPEN[name][1] for name in _IMAGE_FORMATS)
    return any(accept(head) for accept in accepts if accept)


# ISO/IEC 23008-12: a HEIC file begins with a box "ftyp" that names one of these brands.
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"})

# How to turn an image upright, by its EXIF orientation (tag 274).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SPARE = 2  # a reduced JPEG keeps this many times the wanted side, enough for a good resize
_LONGEST = 16  # times as long as wide: a longer image would take too much memory when enlarged

ImageSource = str | Path | IO[bytes]
Opener = Callable[[Any], Image.Image]


def open_image(file: ImageSource, *, ranges: Ranges | None = None) -> Image.Image:
    """Read one image, upright by its EXIF orientation, as an 8-bit RGB image of shape (H, W).

    Takes a path or an open binary file. Grey, palette and CMYK images keep their tones, transparent
    ones are laid on white (unless that hides the whole picture), an animation gives its first
    frame. Grey values beyond 8 bits are scaled by `ranges`, which a data set and a checkpoint have
    in their `preprocessing`; without them, by the range that the image itself takes. Raises
    ImageError, which names the file and the reason, for an image that cannot be read completely.
    """
    with _opened(file) as image:
        jpeg.load(image)
        return upright_rgb(image, ranges)


def open_resized(
    file: ImageSource,
    side: int,
    interpolation: str = "bilinear",
    *,
    ranges: Ranges | None = None,
    decided: bool = True,
) -> Image.Image:
    """`open_image` with the short side at `side` pixels, as `resized` makes it, but faster.

    A large JPEG is decoded at a half, a quarter or an eighth of its size, with at least twice
    `side` left: half the time, and nearly the same pixels. Raises ImageError like `open_image`, and
    with `decided=False` RangeUndecided for an image that needs a range.
    """
    with _opened(file) as image:
        full_size = image.size
        image.draft(None, (_SPARE * side, _SPARE * side))
        jpeg.load(image)
        if image.format == "TIFF":  # Pillow turns a TIFF upright when it loads it
            full_size = image.size
        rgb = _to_rgb(image, ranges, decided=decided)
        return _turned(resized(rgb, side, interpolation, full_size), orientation(image))


def read_image(
    file: ImageSource,
    side: int | None = None,
    interpolation: str = "bilinear",
    *,
    ranges: Ranges | None = None,
    opener: Opener | None = None,
    decided: bool = True,
) -> Image.Image:
    """`open_image`, or `open_resized` with a side; with `opener`, by a function of one's own."""
    if opener is None and side:
        return open_resized(file, side, interpolation, ranges=ranges, decided=decided)
    if opener is None:
        return open_image(file, ranges=ranges)
    try:
        image = upright_rgb(opener(file))
    except Exception as error:
        reason = f"open_image failed ({type(error).__name__}: {error})"
        raise ImageError(f"{file}: {reason}.", reason) from error
    return resized(image, side, interpolation) if side else image


def opener_key(opener: Opener | None) -> str:
    """The name of such a function and a digest of its code, not of what else it uses."""
    code = getattr(opener, "__code__", None)
    parts = [code.co_code, code.co_consts, code.co_names] if code else []
    name = getattr(opener, "__qualname__", None) or repr(opener)
    return f"{name} {fingerprint(parts)}" if opener else ""


def resized(
    image: Image.Image,
    side: int,
    interpolation: str = "bilinear",
    full_size: tuple[int, int] | None = None,
) -> Image.Image:
    """The image with its short side at `side` pixels; a smaller one is not enlarged.

    `interpolation` is "bilinear" or "bicubic". Only the middle is kept of an image more than 16
    times as long as wide. `full_size` is the size in the file of an image that was decoded at a
    reduced scale.
    """
    full_size = full_size or image.size
    short = min(full_size)
    kept = [min(length, _LONGEST * short) for length in full_size]
    if kept == list(full_size) == list(image.size) and short <= side:
        return image
    side = min(side, short)
    size = [side * length // short for length in kept]  # rounded down, as torchvision does
    # A reduced JPEG may hold only a part of its last row or column: the box ends at the real edge.
    scales = [round(full / now) for full, now in zip(full_size, image.size, strict=True)]
    (left, right), (top, bottom) = (
        ((full - length) / 2 / scale, (full + length) / 2 / scale)
        for full, length, scale in zip(full_size, kept, scales, strict=True)
    )
    method = Image.Resampling[interpolation.upper()]
    return image.resize(size, method, box=(left, top, right, bottom))


def upright_rgb(image: Image.Image, ranges: Ranges | None = None) -> Image.Image:
    """An open image as `open_image` returns it."""
    return _turned(_to_rgb(image, ranges), orientation(image))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an open image once it is upright; only its header is read."""
    size = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # some versions of Pillow turn its size
        size = image.tag_v2[256], image.tag_v2[257]
    return size[::-1] if orientation(image) >= 5 else size


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. (Pillow's exif_transpose also rewrites EXIF: it can fail.)"""
    with suppress(Exception):  # EXIF that cannot be parsed says nothing about the orientation
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in range(1, 9) else 1
    return 1


def decoding_key(path: str | Path, *options: object) -> str:
    """A digest of all that decides about an image's pixels: the file, `options`, Pillow's rules.

    Size and modification time stay when two files exchange their names or a program restores the
    time; the inode and the time of the last change of any kind do not. Raises OSError.
    """
    status = os.stat(path)
    times = status.st_mtime_ns, status.st_ctime_ns
    rules = bool(ImageFile.LOAD_TRUNCATED_IMAGES)  # any program's code may have set it
    return fingerprint(
        (os.path.abspath(path), status.st_size, status.st_ino, *times, rules, *options)
    )


def unreadable_because(file: ImageSource, error: Exception) -> str:
    """In a few words, why reading this file ended in this error."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        if isinstance(file, str | Path):
            with open(file, "rb") as opened:
                head = opened.read(12)
        else:
            file.seek(0)
            head = file.read(12)
        if not head:
            return "the file is empty"
        if not _READS_HEIC and head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
            return "HEIC needs pillow-heif (pip install pillow-heif); or save it as JPEG"
        return "not an image in a format that can be read"
    return str(error) or f"it cannot be decoded ({type(error).__name__})"


@contextmanager
def _opened(file: ImageSource) -> Iterator[Image.Image]:
    """The image in a file; whatever goes wrong while it is open becomes an ImageError."""
    file = user_path(file) if isinstance(file, str | Path) else file
    try:
        if isinstance(file, str | Path) and not stat.S_ISREG(os.stat(file).st_mode):
            raise OSError("not a file")  # opening a pipe or a device could wait forever
        with Image.open(file, formats=readable_formats()) as image:
            yield image
    except RangeUndecided:
        raise
    except Exception as error:  # a decoder can fail in any way on a broken file
        reason = unreadable_because(file, error)
        raise ImageError(
            f"{file}: {reason}. Replace the file or remove it from the data set.", reason
        ) from error


def _turned(image: Image.Image, turn: int) -> Image.Image:
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def _to_rgb(image: Image.Image, ranges: Ranges | None, *, decided: bool = True) -> Image.Image:
    """The image in 8-bit RGB, on white where it is transparent."""
    if is_deep(image):
        image = eight_bit(image, ranges, decided=decided)
    if image.has_transparency_data:
        target = "LA" if image.mode in ("LA", "La") else "RGBA"
        image = image if image.mode == target else image.convert(target)
        *colours, alpha = cast(list[tuple[float, float]], image.getextrema())
        if alpha == (0, 0) and any(low < high for low, high in colours):
            return image.convert("RGB")  # there is a picture, which would be hidden
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy takes memory
