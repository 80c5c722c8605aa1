"""A validation split for a data set that has none."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pandas as pd

from resnet_ft.data.table import ImageTable
from resnet_ft.errors import DatasetError

_VAL_SHARE = 0.2


def set_aside(images: ImageTable) -> ImageTable:
    """Move about a fifth of each class to "val": at least one image of it, and never all.

    A hash of each path decides, so that an image stays where it is when others are added; only in
    a class so small that no hash is low enough, the lowest is taken, and may change. Raises
    DatasetError for a class of one image.
    """
    labels = images.labels
    share = pd.Series(np.fromiter(map(_hash_share, images.paths), float, len(images)))
    of_class = share.groupby(labels["class_name"], observed=True)
    lowest, highest = of_class.transform("min"), of_class.transform("max")
    alone = labels.loc[lowest == highest, "class_name"].unique()
    if alone.size:
        raise DatasetError(
            f"Class {alone[0]} has a single image: one is needed for training and one for "
            "validation. Add images, or remove the class."
        )
    aside = ((share < _VAL_SHARE) | (share == lowest)) & (share < highest)
    return replace(images, labels=labels.assign(split=labels["split"].mask(aside, "val")))


def _hash_share(path: str) -> float:
    """A number in [0, 1) that depends on the path alone."""
    return int(sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16) / 2**32
