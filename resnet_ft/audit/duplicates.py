"""Which files show the same image: equal bytes, or a copy in another size or quality."""

from collections.abc import Iterable, Iterator
from itertools import product

import imagehash
import numpy as np
import pandas as pd

from resnet_ft.audit.inspect import THUMBNAIL

_MOST_BITS = 10  # of 64 perceptual bits that differ between copies
_MOST_DIFFERENCE = 0.15  # between the thumbnails of copies: a correlation of 0.989
_MOST_CANDIDATES = 256  # per image; a bound for data sets in which all images look alike
_ROWS = 256  # images that are compared with all others at a time


def find_duplicates(images: pd.DataFrame) -> pd.DataFrame:
    """Pairs of files that show the same image.

    `images` has the columns `path`, `split`, `class_name` and the facts of `inspect_file`; the
    earlier of two images counts as the original. Returns a row per copy: `path`, `other` (its
    original), `kind` ("exact" or "near"), `distance` (0 to 0.15) and `relation` ("between classes"
    if the classes differ, else "between splits" or "same class").

    Near copies are candidates whose perceptual hashes differ in at most 10 of 64 bits (Zauner,
    "Implementation and benchmarking of perceptual image hash functions", 2010) and whose
    thumbnails differ by at most 0.15 (see `_Thumbnails`): resized, recompressed, slightly edited
    or cropped copies. Those that were turned, mirrored or cropped by more than 6% are not found.
    """
    images = images.dropna(subset=["content", "thumbnail"]).reset_index(drop=True)
    original = images.groupby("content", sort=False)["path"].transform("first")
    copies = (images["path"] != original).to_numpy()
    originals = zip(images["path"][copies], original[copies], strict=True)
    exact = [(path, first, "exact", 0.0) for path, first in originals]
    distinct = images[~copies]
    paths = distinct["path"].to_numpy()
    near = [(paths[later], paths[first], "near", gap) for first, later, gap in _near(distinct)]
    pairs = pd.DataFrame(exact + near, columns=["path", "other", "kind", "distance"])
    places = [images.set_index("path")[column].astype(str) for column in ("class_name", "split")]
    differ = [pairs["path"].map(place) != pairs["other"].map(place) for place in places]
    relation = np.select(differ, ["between classes", "between splits"], "same class")
    return pairs.astype({"distance": float}).assign(relation=relation)


def _near(images: pd.DataFrame) -> Iterator[tuple[int, int, float]]:
    """(first, later, distance) of images in a table: each later one once, with its first match."""
    bits = [imagehash.hex_to_hash(text).hash.ravel() for text in images["perceptual_hash"]]
    signs = np.where(np.array(bits, bool).reshape(-1, 64), 1, -1).astype(np.float32)
    thumbnails = _Thumbnails(images["thumbnail"])
    done = thumbnails.empty.copy()
    for start in range(0, len(signs), _ROWS):
        # A product of signs counts the bits that agree less those that differ.
        agreement = signs[start : start + _ROWS] @ signs[start:].T
        candidates = (agreement >= 64 - 2 * _MOST_BITS) & ~done[start:]
        np.fill_diagonal(candidates, False)
        for row in np.flatnonzero(candidates.any(axis=1)).tolist():
            later = row + 1 + np.flatnonzero(candidates[row, row + 1 :] & ~done[start + row + 1 :])
            nearest_first = np.argsort(-agreement[row, later], kind="stable")
            later = start + later[nearest_first[:_MOST_CANDIDATES]]
            distances = thumbnails.differences(start + row, later)
            for copy, distance in zip(later.tolist(), distances.tolist(), strict=True):
                if distance <= _MOST_DIFFERENCE:
                    done[copy] = True
                    yield start + row, copy, distance


_SIDE = 16  # pixels: thumbnails are compared at this size, since a crop rarely ends at a pixel
_MARGINS = (0.0, 0.03, 0.06)  # shares of the width or height that a copy may have lost at each end
_LEAST_STRUCTURE = 4.0  # grey levels: emptier thumbnails resemble each other without being copies
_EQUAL_BELOW = 0.1  # nothing to align
_ALIGNED_BELOW = 0.7  # a copy cropped by at most these margins is never further away
_MOST_ALIGNED = 2  # per image: aligning takes a millisecond
_BATCH = 1024


class _Thumbnails:
    """Thumbnails of 24 x 24 RGB pixels, to be compared; `empty` marks those without structure."""

    def __init__(self, thumbnails: Iterable[bytes]):
        pixels = np.frombuffer(b"".join(thumbnails), np.uint8)
        self._pixels = pixels.reshape(-1, THUMBNAIL, THUMBNAIL, 3)
        batches = [
            _standardised(self._pixels[start : start + _BATCH], _CROPS[:1])[:, 0].astype(np.float16)
            for start in range(0, max(1, len(self._pixels)), _BATCH)
        ]
        self._rows = np.concatenate(batches)
        self.empty: np.ndarray = np.logical_not(self._rows.any(axis=1))

    def differences(self, one: int, others: np.ndarray) -> np.ndarray:
        """Root mean square differences between one image and others: 0 for equal ones.

        Each channel is taken less its mean, and the three scaled to unit variance: unrelated
        images are about 1.4 apart. An image that could be a crop of the other is aligned with it.
        """
        result = _distances(self._rows[one], self._rows[others])
        unclear = np.flatnonzero((result > _EQUAL_BELOW) & (result < _ALIGNED_BELOW))
        for i in unclear[np.argsort(result[unclear])][:_MOST_ALIGNED]:
            of_one = _distances(self._rows[others[i]], self._crops(one))
            of_other = _distances(self._rows[one], self._crops(others[i]))
            result[i] = min(result[i], of_one.min(), of_other.min())
        return result

    def _crops(self, i: int) -> np.ndarray:
        return _standardised(self._pixels[i : i + 1], _CROPS)[0]


def _distances(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    difference = others.astype(np.float32) - one
    return np.sqrt(np.einsum("ij,ij->i", difference, difference) / len(one))


def _standardised(images: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """Images (N, 24, 24, 3) in every combination of crops in y and x: (N, crops, values)."""
    planes = images.astype(np.float32).transpose(0, 3, 1, 2)[:, None]
    rows = crops[:, None] @ planes  # N, crop in y, channel, y, x
    pixels = rows[:, :, None] @ crops.transpose(0, 2, 1)[:, None]  # N, in y, in x, channel, y, x
    pixels = pixels.reshape(len(images), len(crops) ** 2, 3, _SIDE**2)
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
