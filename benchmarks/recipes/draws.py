"""Small data sets drawn from a large one: so many images per class, as folders of links."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from recipes import ALL
from resnet_ft import audit_dataset

_MOST = 20  # training images per class of a small draw; what these leave is tested on
_TEST_IMAGES = {"small": 300, "all": 500}


def draw_folder(data_dir: Path, images_per_class: int, draw: int, scratch: Path) -> Path:
    """A folder with Train, Val and Test, made of the Train folder of `data_dir`.

    Val has a fifth as many images as Train, and at least one per class. All small draws of one
    number are tested on the same images. With `ALL`, the parts are 64, 16 and 20 per cent.
    """
    folder = scratch / "draws" / f"{data_dir.name}-{images_per_class or 'all'}-{draw}"
    if folder.exists():
        return folder
    unfinished = folder.with_suffix(f".{np.random.default_rng().integers(10**9)}")
    splits: dict[str, list[str]] = {"Train": [], "Val": [], "Test": []}
    for class_name, files in _distinct(data_dir, scratch).items():
        order = np.random.default_rng([draw, zlib.crc32(class_name.encode())])
        shuffled = order.permutation(files).tolist()
        if images_per_class == ALL:
            train, val = round(0.64 * len(files)), round(0.16 * len(files))
            first_tested = train + val
        else:
            train, val = images_per_class, max(1, images_per_class // 5)
            first_tested = _MOST + _MOST // 5
        splits["Train"] += shuffled[:train]
        splits["Val"] += shuffled[train : train + val]
        splits["Test"] += shuffled[first_tested:]
    most = _TEST_IMAGES["all" if images_per_class == ALL else "small"]
    splits["Test"] = np.random.default_rng(draw).permutation(splits["Test"]).tolist()[:most]
    for split, files in splits.items():
        for file in files:
            link = unfinished / split / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(data_dir.resolve() / "Train" / file)
    try:
        unfinished.rename(folder)
    except OSError:  # another process was quicker
        assert folder.exists()
    return folder


def _distinct(data_dir: Path, scratch: Path) -> Mapping[str, list[str]]:
    """The files of Train by class, below it, without copies of others and what is no image."""
    listing = scratch / "listings" / f"{data_dir.name}.json"
    if not listing.exists():
        audit = audit_dataset(data_dir)
        copies = audit.pairs[audit.pairs["other"].str.startswith("Train/")]["path"]
        images = audit.images[audit.images["problem"].isna() & (audit.images["split"] == "train")]
        images = images[~images["path"].isin(copies)]
        by_class = {
            str(name): sorted(path.removeprefix("Train/") for path in of_class["path"])
            for name, of_class in images.groupby("class_name")
        }
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(json.dumps(by_class))
    found: Mapping[str, list[str]] = json.loads(listing.read_text())
    return found
