"""What a data set in tar shards holds: `dataset.json`, and the samples of one shard.

The shards have the layout of the webdataset library: members whose names are alike up to the first
dot are a sample, `<key>.jpg` (or another image) and `<key>.cls`, its label as text.
"""

import json
import re
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from resnet_ft.data.fetching import fetch, is_address
from resnet_ft.data.images import IMAGE_EXTENSIONS
from resnet_ft.data.layout import SPLITS
from resnet_ft.errors import DatasetError
from resnet_ft.files import fingerprint

INDEX = "dataset.json"
_NAME = re.compile(r"\w[\w-]*\.tar", re.ASCII)  # none leads elsewhere, or is a command in a "pipe:"
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
_ENTRY = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i4")])


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, how many samples it has, and its size in bytes."""

    name: str
    samples: int
    bytes: int


@dataclass(frozen=True)
class ShardIndex:
    """What `dataset.json` says: class names by label, the shards of each split, a fingerprint."""

    classes: list[str]
    fingerprint: str
    splits: dict[str, list[Shard]]


def holds_shards(location: str | Path) -> bool:
    """Whether this is an address, or a folder of shards, rather than a folder of images."""
    if is_address(location):
        return True
    folder = Path(location)
    return (folder / INDEX).is_file() and any(folder.glob("*.tar"))


def place_of(location: str | Path, name: str) -> str:
    """The path or address of a file of a data set: at "{}" where `location` has it, or below it."""
    location = str(location)
    return location.replace("{}", name) if "{}" in location else f"{location.rstrip('/')}/{name}"


def read_shard_index(location: str | Path) -> ShardIndex:
    """Read `dataset.json`. Raises DatasetError where it is missing or does not describe shards."""
    place = place_of(location, INDEX)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, INDEX) if is_address(location) else Path(place)
        if is_address(location):
            fetch(place, path)
        text = path.read_bytes()
    try:
        described = json.loads(text)
        found = {
            split: [Shard(str(s["name"]), int(s["samples"]), int(s["bytes"])) for s in shards]
            for split, shards in described["splits"].items()
        }
        names = [shard.name for shards in found.values() for shard in shards]
        strange = [name for name in names if not _NAME.fullmatch(name)]
        if strange or len(set(names)) < len(names):
            raise ValueError(f"the shards should be called train-000000.tar, ..., not {strange}")
        if not all(sum(shard.samples for shard in shards) for shards in found.values()):
            raise ValueError("a split without samples")
        splits = {split: found[split] for split in SPLITS if split in found}
        classes = [str(name) for name in described["classes"]]
        return ShardIndex(classes, str(described.get("fingerprint") or fingerprint([text])), splits)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{place} does not describe shards as pack_dataset does: {type(error).__name__}: "
            f"{error}. Pack the data set anew, or check the address."
        ) from error


def list_samples(file: IO[bytes], place: str) -> tuple[list[str], np.ndarray]:
    """Keys of the samples of a shard, and a record of each: offset and size of its image, label.

    `place` is what an error calls the shard. Raises DatasetError for what is no tar file, and for a
    sample without an image or a label.
    """
    found: dict[str, dict] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                named = _MEMBER.fullmatch(member.name)
                if not (named and member.isfile()):
                    continue
                key, extension = named[1], "." + named[2].lower()
                sample = found.setdefault(key, {})
                if extension in IMAGE_EXTENSIONS:
                    sample["image"] = member.offset_data, member.size
                elif extension == ".cls":
                    file.seek(member.offset_data)
                    sample["label"] = int(file.read(member.size))
    except (tarfile.TarError, ValueError) as error:
        raise DatasetError(
            f"{place} is broken: {error}. Fetch it anew, or pack the data set anew."
        ) from error
    for key, sample in found.items():
        if len(sample) < 2:
            lacking = "label (.cls)" if "image" in sample else "image (.jpg, .png, ...)"
            raise DatasetError(f"{place}: sample {key} has no {lacking}. Pack the data set anew.")
    records = [(*sample["image"], sample["label"]) for sample in found.values()]
    return list(found), np.array(records, _ENTRY)
