"""Photographs made as small as training needs them, before they take up disk and time."""

import io
import os
from pathlib import Path
from threading import BoundedSemaphore

from PIL import Image

from resnet_ft.data.folders import find_images
from resnet_ft.data.images import upright_rgb
from resnet_ft.notebook import progress_bar
from resnet_ft.remote import in_parallel

_QUALITY = {"JPEG": 90, "WEBP": 90, "AVIF": 90, "HEIF": 90}
_COLOUR_SPACES = {"RGB": b"RGB ", "L": b"GRAY"}  # ICC.1:2022, table 19, at byte 16 of a profile
# Many threads wait for Drive, but only as many as there are cores hold decoded pixels.
_cores = BoundedSemaphore(os.cpu_count() or 1)


def shrunk(content: bytes, max_side: int) -> bytes | None:
    """An image file whose longer side is `max_side` pixels, upright and in the same format.

    The pixels are those of `open_image`, made smaller: transparency is laid on white. Grey stays
    grey, and an ICC profile is kept where it still describes the pixels. None for an image that is
    not larger, that moves or has several pages, or that cannot be read or written.
    """
    with _cores:
        try:
            with Image.open(io.BytesIO(content)) as image:
                # A telephone's MPO is a JPEG with a preview or a depth map behind it.
                file_format = "JPEG" if image.format == "MPO" else image.format
                several = getattr(image, "n_frames", 1) > 1 and image.format != "MPO"
                if max(image.size) <= max_side or several:
                    return None
                smaller = _smaller(image, max_side)
                profile = image.info.get("icc_profile") or b""
            return _encoded(smaller, file_format, profile)
        except Exception:  # a decoder can fail in any way: the audit will list the file
            return None


def _smaller(image: Image.Image, max_side: int) -> Image.Image:
    """An open image, upright, resized from the smallest scale that its decoder offers."""
    lies = image.width > image.height
    scale = max_side / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    mode = "L" if image.mode in ("1", "L") else "RGB"
    image.draft(None, tuple(size))
    image.load()
    upright = upright_rgb(image).convert(mode)
    if lies != (upright.width > upright.height):
        size.reverse()
    return upright.resize(size, Image.Resampling.LANCZOS)


def _encoded(image: Image.Image, file_format: str, profile: bytes) -> bytes:
    image.info = {}  # an orientation that is left there would turn the upright image again
    options = {"quality": _QUALITY[file_format]} if file_format in _QUALITY else {}
    if profile[16:20] == _COLOUR_SPACES[image.mode]:
        options["icc_profile"] = profile
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def shrink_folder(folder: Path, max_side: int) -> None:
    """Shrink the images below a folder where they are, on all cores, with progress."""
    paths = list(find_images(folder))

    def shrink(path: Path) -> None:
        content = shrunk(path.read_bytes(), max_side)
        if content:
            path.write_bytes(content)

    shrinking = in_parallel(shrink, paths, os.cpu_count() or 1)
    for _ in progress_bar(shrinking, "Shrinking", len(paths)):
        pass
