"""One row: time the epochs of one way to load a data set, in a process that does nothing else.

`python -m loading.measure data_dir library configuration`; the last line printed is JSON.
"""

import importlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from loading import BATCH_SIZE, IMAGE_SIZE

_LATER_EPOCHS = 3  # at least so many, and more of the fast ones
_LATER_SECONDS = 5.0


def measure(data_dir: Path, library: str, configuration: str) -> dict[str, object]:
    """Images per second in the first epoch, with all that comes before it, and in later ones.

    Later epochs use the same loader; theirs is the median. Imports are not timed.
    """
    build = importlib.import_module(f"loading.{library}").CONFIGURATIONS[configuration]
    number = _read_all(data_dir)
    with tempfile.TemporaryDirectory(prefix="kept-", dir=data_dir.parent) as scratch:
        started = time.perf_counter()
        loader = build(data_dir, Path(scratch))
        batch = _epoch(loader, number)
        first = time.perf_counter() - started
        _check(batch)
        later = []
        while len(later) < _LATER_EPOCHS or sum(later) < _LATER_SECONDS:
            started = time.perf_counter()
            _epoch(loader, number)
            later.append(time.perf_counter() - started)
    return {
        "data_set": data_dir.name,
        "library": library,
        "configuration": configuration,
        "first_epoch": round(number / first, 2),
        "later_epochs": round(number / statistics.median(later), 2),
        "number_of_later_epochs": len(later),
        "threads": torch.get_num_threads(),
        "start_method": multiprocessing.get_start_method(),
    }


def _read_all(data_dir: Path) -> int:
    """Bring every file into the page cache; how many images there are to train on."""
    sizes = [len(path.read_bytes()) for path in (data_dir / "Val").rglob("*.jpg")]
    training = [len(path.read_bytes()) for path in (data_dir / "Train").rglob("*.jpg")]
    assert all(sizes + training)
    return len(training)


def _epoch(loader: Iterable, number: int) -> torch.Tensor:
    """Receive an epoch; its last batch of images."""
    delivered = 0
    for images, labels in loader:
        delivered += len(images)
        assert len(images) == len(labels)
    assert delivered == number, f"{delivered} of {number} images were delivered"
    return images


def _check(images: torch.Tensor) -> None:
    """Equal work: whole batches of the same shape, type and normalisation."""
    assert images.shape == (BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE), images.shape
    assert images.dtype == torch.float32, images.dtype
    # Black is -2.1 and white 2.6 after ImageNet's normalisation, 0 and 1 (or 255) without it.
    assert -2.2 < images.min() < -1 and 1 < images.max() < 2.7, (images.min(), images.max())


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), *sys.argv[2:])))
