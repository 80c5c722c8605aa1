"""Images made as small as training needs them, before they take up disk and time."""

import io
import os
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

from PIL import Image

from resnet_ft.data.folders import find_images
from resnet_ft.data.images import upright_rgb
from resnet_ft.notebook import progress_bar
from resnet_ft.remote import in_parallel

_LOSSY = ("JPEG", "WEBP", "AVIF", "HEIF")
_COLOUR_SPACES = {"RGB": b"RGB ", "L": b"GRAY"}  # ICC.1:2022, table 19, at byte 16 of a profile
# Many threads wait for Drive, but no more than one per core holds decoded pixels.
_cores = BoundedSemaphore(os.cpu_count() or 1)


def shrunk(content: bytes, max_side: int) -> bytes | None:
    """Return an image file's bytes with the longer side at `max_side` pixels, upright, same format.

    The pixels are those of `open_image`, made smaller: transparency is laid on white. Grey stays
    grey, and an ICC profile is kept where it still describes the pixels. None for an image that is
    not larger, that is animated or has several pages, or that cannot be read or written.
    """
    with _cores:
        try:
            with Image.open(io.BytesIO(content)) as image:
                # A telephone's MPO is a JPEG with a preview or a depth map behind it.
                file_format = "JPEG" if image.format == "MPO" else image.format or ""
                several = getattr(image, "n_frames", 1) > 1 and image.format != "MPO"
                if max(image.size) <= max_side or several:
                    return None
                smaller = _smaller(image, max_side)
                profile = image.info.get("icc_profile") or b""
            options: dict[str, Any] = {"quality": 90} if file_format in _LOSSY else {}
            if profile[16:20] == _COLOUR_SPACES[smaller.mode]:
                options["icc_profile"] = profile
            smaller.info = {}  # an orientation in it would turn the upright image again
            file = io.BytesIO()
            smaller.save(file, file_format, **options)
            return file.getvalue()
        except Exception:  # a decoder can fail in any way: the audit will list the file
            return None


def _smaller(image: Image.Image, max_side: int) -> Image.Image:
    """An open image, upright, resized from the smallest scale that its decoder offers."""
    is_landscape = image.width > image.height
    scale = max_side / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    mode = "L" if image.mode in ("1", "L") else "RGB"
    image.draft(None, (width, height))
    image.load()
    upright = upright_rgb(image).convert(mode)
    if is_landscape != (upright.width > upright.height):
        width, height = height, width
    return upright.resize((width, height), Image.Resampling.LANCZOS)


def shrink_folder(folder: Path, max_side: int) -> None:
    """Shrink the images below a folder in place, on all cores, with progress."""
    paths = list(find_images(folder))

    def shrink(path: Path) -> None:
        content = shrunk(path.read_bytes(), max_side)
        if content:
            path.write_bytes(content)

    shrinking = in_parallel(shrink, paths, os.cpu_count() or 1)
    for _ in progress_bar(shrinking, "Shrinking", len(paths)):
        pass
