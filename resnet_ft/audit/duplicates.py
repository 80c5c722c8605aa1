"""Which files show the same picture: equal to the byte, or saved in another size or quality."""

from collections.abc import Iterator

import imagehash
import numpy as np
import pandas as pd

from resnet_ft.audit.resemblance import Thumbnails

BETWEEN_CLASSES, BETWEEN_SPLITS, SAME_CLASS = "between classes", "between splits", "same class"
_MOST_BITS = 10  # of 64 perceptual bits that differ between copies
_MOST_DIFFERENCE = 0.15  # between the thumbnails of copies: a correlation of 0.989
_MOST_CANDIDATES = 256  # for one image; a bound for data sets in which all images look alike
_ROWS = 256  # compared with all others at a time
_COLUMNS = ["path", "other", "kind", "distance"]


def find_duplicates(images: pd.DataFrame) -> pd.DataFrame:
    """Pairs of files that show the same picture.

    `images` has the columns `path`, `split`, `class_name`, `content` (a hash), `perceptual_hash`
    and `thumbnail` of `inspect_file`; the earlier of two images counts as the original. Returns
    `path`, `other` (its original), `kind` ("exact" or "near"), `distance` (0 to 0.15) and
    `relation` ("between classes" if the classes differ, else "between splits" or "same class").
    However many copies there are, each has one row, with the first image that it equals.

    Near copies are candidates whose perceptual hashes differ in at most 10 of 64 bits (Zauner,
    "Implementation and benchmarking of perceptual image hash functions", 2010) and whose
    thumbnails, light and contrast put aside, differ by at most 0.15 (root mean square, see
    `Thumbnails`): resized, recompressed, slightly edited or cropped copies. Similar photographs
    are further apart. Copies that were turned, mirrored or cropped by more than 6% are not found.
    """
    images = images.dropna(subset=["content", "thumbnail"]).reset_index(drop=True)
    original = images.groupby("content", sort=False)["path"].transform("first")
    copies = (images["path"] != original).to_numpy()
    exact = [
        (path, first, "exact", 0.0)
        for path, first in zip(images["path"][copies], original[copies], strict=True)
    ]
    distinct = images[~copies]
    paths = distinct["path"].to_numpy()
    near = [(paths[later], paths[first], "near", gap) for first, later, gap in _near(distinct)]
    pairs = pd.DataFrame(exact + near, columns=_COLUMNS).astype({"distance": float})
    return _related(pairs, images.set_index("path"))


def _related(pairs: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    places = [images[column].astype(str) for column in ("class_name", "split")]
    differ = [pairs["path"].map(place) != pairs["other"].map(place) for place in places]
    relation = np.select(differ, [BETWEEN_CLASSES, BETWEEN_SPLITS], SAME_CLASS)
    return pairs.assign(relation=relation)


def _near(images: pd.DataFrame) -> Iterator[tuple[int, int, float]]:
    """(first, later, distance) of images in a table: each later one once, with its first match."""
    signs, thumbnails = _signs(images["perceptual_hash"]), Thumbnails(images["thumbnail"])
    done = thumbnails.empty.copy()
    for start in range(0, len(signs), _ROWS):
        # A product of signs counts the bits that agree less those that differ.
        agreement = signs[start : start + _ROWS] @ signs[start:].T
        candidates = (agreement >= 64 - 2 * _MOST_BITS) & ~done[start:]
        np.fill_diagonal(candidates, False)
        for row in np.flatnonzero(candidates.any(axis=1)):
            later = row + 1 + np.flatnonzero(candidates[row, row + 1 :] & ~done[start + row + 1 :])
            nearest_first = np.argsort(-agreement[row, later], kind="stable")
            later = start + later[nearest_first[:_MOST_CANDIDATES]]
            distances = thumbnails.differences(start + row, later)
            for i in np.flatnonzero(distances <= _MOST_DIFFERENCE):
                done[later[i]] = True
                yield start + row, later[i], float(distances[i])


def _signs(hashes: pd.Series) -> np.ndarray:
    """Perceptual hashes in hexadecimal as rows of 64 numbers, -1 or 1."""
    bits = [imagehash.hex_to_hash(text).hash.ravel() for text in hashes]
    return np.where(np.array(bits, bool).reshape(-1, 64), 1, -1).astype(np.float32)
