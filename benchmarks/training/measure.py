"""One row: time a training from start to end and by epoch, in a process that does nothing else.

`python -m training.measure data_dir library recipe`; the last line printed is JSON.
"""

import importlib
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import Bottleneck

from training import ARCH, NUM_CLASSES
from training.clock import Clock


def measure(data_dir: Path, library: str, recipe: str) -> dict[str, object]:
    """Its seconds. Neither imports are timed nor making the network, whose weights are random."""
    train = importlib.import_module(f"training.{library}").RECIPES[recipe]
    images = [len(path.read_bytes()) for path in data_dir.rglob("*.jpg")]  # into the page cache
    model = _network(library)
    with tempfile.TemporaryDirectory(prefix="kept-", dir=data_dir.parent) as scratch:
        clock = Clock()
        train(data_dir, Path(scratch), model, clock)
        seconds = clock.seconds()
    return {
        "library": library,
        "recipe": recipe,
        **seconds,
        "images": len(images),
        "threads": torch.get_num_threads(),
        "start_method": multiprocessing.get_start_method(),
    }


def _network(library: str) -> nn.Module:
    """torchvision's; resnet_ft's own function makes the same one, and notes what it is.

    With the usual random weights, what 33 blocks of ResNet101 add up goes beyond half precision in
    evaluation mode. That of trained weights does not, so each block gets a smaller share.
    """
    if library == "resnet_ft":
        from resnet_ft import build_model

        model = build_model(ARCH, NUM_CLASSES, weights=None)
    else:
        model = get_model(ARCH, weights=None, num_classes=NUM_CLASSES)
    for block in model.modules():
        if isinstance(block, Bottleneck):
            nn.init.constant_(block.bn3.weight, 0.2)
    return model


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), *sys.argv[2:])))
