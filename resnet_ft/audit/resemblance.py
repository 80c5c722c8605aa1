"""How different two pictures are, by their thumbnails: light, contrast and crops put aside."""

from collections.abc import Iterable
from itertools import product

import numpy as np

from resnet_ft.audit.appearance import THUMBNAIL

_SIDE = 16  # pixels: thumbnails are compared at this size, since a crop is never cut at a pixel
_MARGINS = (0.0, 0.03, 0.06)  # shares of a side that a copy may have lost at either end
_LEAST_STRUCTURE = 4.0  # grey levels: emptier thumbnails resemble each other without being copies
_EQUAL_BELOW = 0.1  # nothing to align
_ALIGNED_BELOW = 0.7  # a copy that is cropped no more than that is not further away
_MOST_ALIGNED = 2  # for one picture: aligning takes a millisecond
_BATCH = 1024


class Thumbnails:
    """Thumbnails of 24 x 24 RGB pixels, to be compared; `empty` tells those without structure."""

    def __init__(self, thumbnails: Iterable[bytes]):
        pixels = np.frombuffer(b"".join(thumbnails), np.uint8)
        self._pixels = pixels.reshape(-1, THUMBNAIL, THUMBNAIL, 3)
        batches = [
            _standardised(self._pixels[start : start + _BATCH], _CROPS[:1])[:, 0].astype(np.float16)
            for start in range(0, max(1, len(self._pixels)), _BATCH)
        ]
        self._rows = np.concatenate(batches)
        self.empty = ~self._rows.any(axis=1)

    def differences(self, one: int, others: np.ndarray) -> np.ndarray:
        """Root mean square differences between one picture and others: 0 for equal ones.

        Each channel is taken less its mean, and the three scaled to unit variance: unrelated
        pictures are about 1.4 apart. Those that could be crops, one of the other, are aligned.
        """
        result = _distances(self._rows[one], self._rows[others])
        unclear = np.flatnonzero((result > _EQUAL_BELOW) & (result < _ALIGNED_BELOW))
        if len(unclear):
            crops = self._crops(one)
        for i in unclear[np.argsort(result[unclear])][:_MOST_ALIGNED]:
            of_one = _distances(self._rows[others[i]], crops)
            of_other = _distances(self._rows[one], self._crops(others[i]))
            result[i] = min(result[i], of_one.min(), of_other.min())
        return result

    def _crops(self, i: int) -> np.ndarray:
        return _standardised(self._pixels[i : i + 1], _CROPS)[0]


def _distances(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    difference = others.astype(np.float32) - one
    return np.sqrt(np.einsum("ij,ij->i", difference, difference) / len(one))


def _standardised(pictures: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """Pictures (N, 24, 24, 3) in every combination of crops in y and x: (N, crops, values)."""
    planes = pictures.astype(np.float32).transpose(0, 3, 1, 2)[:, None]
    rows = crops[:, None] @ planes  # N, crop in y, channel, y, x
    pixels = rows[:, :, None] @ crops.transpose(0, 2, 1)[:, None]  # N, in y, in x, channel, y, x
    pixels = pixels.reshape(len(pictures), len(crops) ** 2, 3, _SIDE**2)
    pixels -= pixels.mean(axis=-1, keepdims=True)
    pixels = pixels.reshape(*pixels.shape[:2], 3 * _SIDE**2)
    structure = np.sqrt(np.einsum("ijk,ijk->ij", pixels, pixels) / pixels.shape[-1])
    scale = np.where(structure < _LEAST_STRUCTURE, 0, 1 / np.maximum(structure, 1e-6))
    return pixels * scale[..., None]


def _crop_matrix(before: float, after: float) -> np.ndarray:
    """What cuts margins off a row of 24 pixels and resizes the rest to 16, by triangles."""
    centres = (np.arange(_SIDE) + 0.5) / _SIDE
    positions = (before + centres * (1 - before - after)) * THUMBNAIL - 0.5
    distance = np.abs(positions[:, None] - np.arange(THUMBNAIL)) * _SIDE / THUMBNAIL
    weights = np.maximum(0, 1 - distance)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


_CROPS = np.array([_crop_matrix(*margins) for margins in product(_MARGINS, repeat=2)])
