"""The photographs that loading and training are timed on, the same files every time.

Loading is timed on photographs that are made from real ones, training on a few real ones.
"""

import os
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

_GRAIN = 5  # the standard deviation that makes an enlarged photograph about 3 MB at 12 megapixels
_COPIED = {"Train": 40, "Val": 20}  # photographs of each class
_REMEDY = (
    "Get the data set of PyTorch's transfer-learning tutorial (hymenoptera_data.zip, ants and "
    "bees), unpack it and name its folder: make bench-speed PHOTOS=folder"
)


@dataclass(frozen=True)
class PhotographSet:
    """JPEGs of one size. `grain` adds the noise that a photograph loses when it is enlarged."""

    name: str
    size: tuple[int, int]
    number: int
    grain: bool = False


# An even number of batches of 32, so that two workers have equally much to do.
SMALL = PhotographSet("500x375", (500, 375), 1024)
LARGE = PhotographSet("4000x3000", (4000, 3000), 128, grain=True)


def make_photographs(kind: PhotographSet, photos: Path, scratch: Path) -> Path:
    """A folder `Train/<class>`, `Val/<class>` of such JPEGs, made from `photos` if it is missing.

    `photos` holds real photographs in folders by class. Train has `kind.number` files, each a crop
    of its own; Val has one a class, since what is timed is training.
    """
    folder = scratch / kind.name
    if folder.is_dir():
        return folder
    print(f"Making {kind.number} photographs of {kind.name} pixels in {folder} ...", flush=True)
    unfinished = scratch / f"{kind.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for made in [
            pool.submit(_make_photograph, kind, number, source, unfinished / split)
            for number, (split, source) in enumerate(_sources(kind, photos))
        ]:
            made.result()
    return unfinished.rename(folder)


def copy_photographs(photos: Path, scratch: Path) -> Path:
    """A folder of real photographs, copied from `photos` if it is missing.

    Of two classes, the first 40 of each in Train and the first 20 in Val.
    """
    folder = scratch / "120 photographs"
    if folder.is_dir():
        return folder
    unfinished = scratch / f"{folder.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    for split, number in _COPIED.items():
        by_class = {}
        for path in _found(photos):
            if path.parent.parent.name.lower() == split.lower() and _is_readable(path):
                by_class.setdefault(path.parent.name, []).append(path)
        if len(by_class) < 2 or min(map(len, by_class.values())) < number:
            raise SystemExit(f"{photos} lacks {number} photographs a class in {split}. {_REMEDY}")
        for name in list(by_class)[:2]:
            (unfinished / split / name).mkdir(parents=True)
            for path in by_class[name][:number]:
                shutil.copy(path, unfinished / split / name)
    return unfinished.rename(folder)


def _is_readable(path: Path) -> bool:
    try:
        with Image.open(path) as photo:
            photo.load()
    except OSError:
        return False
    return photo.format == "JPEG"


def _sources(kind: PhotographSet, photos: Path) -> Iterator[tuple[str, Path]]:
    found = _found(photos)
    random.Random(0).shuffle(found)
    for number in range(kind.number):
        yield "Train", found[number % len(found)]
    for source in {path.parent.name: path for path in found}.values():
        yield "Val", source


def _found(photos: Path) -> list[Path]:
    found = sorted(photos.rglob("*.jpg"))
    if not found:
        raise SystemExit(f"{photos} holds no photographs. {_REMEDY}")
    return found


def _make_photograph(kind: PhotographSet, number: int, source: Path, split: Path) -> None:
    rng = np.random.default_rng([0, number])
    with Image.open(source) as photo:
        box = _crop(photo.size, kind.size[0] / kind.size[1], rng)
        image = photo.convert("RGB").resize(kind.size, Image.Resampling.BICUBIC, box=box)
    if kind.grain:
        grain = np.roll(_grain(*kind.size), tuple(rng.integers(kind.size[::-1])), axis=(0, 1))
        bright = np.asarray(image, np.int16) + grain[:, :, None]
        image = Image.fromarray(np.clip(bright, 0, 255).astype(np.uint8))
    folder = split / source.parent.name
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{number:04d}.jpg", quality=90)


def _crop(size: tuple[int, int], aspect: float, rng: np.random.Generator) -> tuple[float, ...]:
    """A random box of this aspect ratio, four fifths of what fits or more."""
    width = min(size[0], size[1] * aspect) * rng.uniform(0.8, 1.0)
    height = width / aspect
    left, top = rng.uniform(0, size[0] - width), rng.uniform(0, size[1] - height)
    return left, top, left + width, top + height


@cache
def _grain(width: int, height: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, _GRAIN, (height, width))
    return noise.astype(np.int16)
