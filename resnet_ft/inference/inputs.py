"""What a predictor takes as an image: files, addresses, bytes, and images in memory."""

import os
import time
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image
from torch import Tensor

from resnet_ft.data.images import ImageSource
from resnet_ft.errors import ImageError, ParameterError
from resnet_ft.files import user_path
from resnet_ft.remote import check_address, in_background, is_address, read_body, request

AnyImage = (
    str | Path | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray | Tensor
)
Several = list[Any] | tuple[Any, ...]

_MOST_BYTES, _SECONDS = 20_000_000, 10.0  # of an image from the web
_TAKEN = (
    "An image is a path, an address (http or https), bytes, an open binary file, a PIL image, an "
    "array (H, W), (H, W, 3) or (H, W, 4), or a tensor (3, H, W), both of uint8 or of floats from "
    "0 to 1. Several images are a list of them."
)


def as_source(image: Any, name: str) -> ImageSource | Image.Image:
    """A path, an open binary file or a PIL image.

    Floats are rounded to the 255 steps of bytes. Raises ImageError for an address, and any error
    for a file, that cannot be read; ParameterError, with `name`, for what is no image.
    """
    if isinstance(image, str | Path):
        if os.path.isdir(user_path(image)):
            raise ParameterError(f"{name} is a folder; predict_folder takes it.")
        return BytesIO(_downloaded(str(image))) if is_address(image) else image
    if isinstance(image, bytes | bytearray | memoryview):
        return BytesIO(image)
    if isinstance(image, np.ndarray | Tensor):
        return Image.fromarray(_bytes(image, name))
    if isinstance(image, Image.Image) and all(image.size):
        return image
    if callable(read := getattr(image, "read", None)):
        if getattr(image, "seekable", bool)():
            image.seek(0)
        if isinstance(content := read(), bytes):
            return BytesIO(content)
        raise ParameterError(f'{name} is a file that is open as text. Open it with "rb".')
    empty = "an empty " if isinstance(image, Image.Image) else ""
    raise ParameterError(f"{name} is {empty}{type(image).__name__}. {_TAKEN}")


def normalised_tensor(image: Any, name: str, size: int | None) -> Tensor:
    """A tensor of floats that is prepared for the network: (3, size, size); None: of any size."""
    shape = tuple(getattr(image, "shape", ()))
    wanted = (3, size, size) if size else (3, *shape[-2:])
    is_float = isinstance(image, Tensor) and image.is_floating_point()
    if is_float and shape == wanted and image.numel() and image.isfinite().all():
        return image.detach().float().cpu()
    kind = getattr(image, "dtype", type(image).__name__)
    raise ParameterError(
        f"{name} is {kind} {shape}; with normalised=True an image is a tensor of finite floats "
        f"(3, {size or 'H'}, {size or 'W'}), as the predictor's `transform` makes it."
    )


def _bytes(image: np.ndarray | Tensor, name: str) -> np.ndarray:
    """An array or a tensor as uint8 (H, W) or (H, W, 3 or 4)."""
    shape, kind = tuple(image.shape), "an array"
    is_image = len(shape) in (2, 3) and shape[2:] in ((), (3,), (4,))
    what = f"{name} is {kind} {shape} of {image.dtype}"
    if isinstance(image, Tensor):
        what = what.replace(kind, "a tensor")
        is_image = len(shape) == 3 and shape[0] == 3
        image = image.detach().cpu().movedim(0, -1)
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not is_image or 0 in shape or (image.dtype != np.uint8 and image.dtype.kind != "f"):
        raise ParameterError(f"{what}. {_TAKEN}")
    if image.dtype == np.uint8:
        return image
    low, high = image.min(), image.max()
    if not (np.rint(255 * low) >= 0 and np.rint(255 * high) <= 255):  # so is NaN
        raise ParameterError(
            f"{what} from {low:.3g} to {high:.3g}; floats are from 0 to 1. Divide colours up to "
            "255 by 255; normalised already? pass normalised=True, with a tensor."
        )
    return np.rint(255 * image.astype(np.float32)).astype(np.uint8)


def _downloaded(url: str) -> bytes:
    """An image from the web. Raises ImageError where it takes too long, or `_received` fails."""
    check_address(url)
    try:
        return in_background(_received, url).result(_SECONDS)
    except TimeoutError:
        raise ImageError(url, f"it did not come within {_SECONDS:.0f} seconds") from None


def _received(url: str) -> bytes:
    """The body of an answer that is an image, or an ImageError; it ends when nobody waits."""
    ends, content = time.monotonic() + _SECONDS, bytearray()
    with request(url, Accept="image/*") as response:
        kind, length = (response.headers.get(f"Content-{one}", "") for one in ("Type", "Length"))
        if not kind.lower().startswith("image/"):
            raise ImageError(url, f"the server sent {kind or 'no type'}, and no image")
        for chunk in read_body(response, None):
            content += chunk
            if max(len(content), int(length or 0)) > _MOST_BYTES:
                raise ImageError(url, f"it is larger than {_MOST_BYTES // 10**6} MB")
            if time.monotonic() > ends:
                raise TimeoutError
    return bytes(content)
