"""How each library gets from a folder of photographs to a CSV of predictions: a module a library.

`CONFIGURATIONS` of a module names the ways to use the library that promise to be its fastest. Each
is a function (weights) -> predict(files, csv), which writes a row per file with the most probable
class and its probability. Images are of 224 pixels, in batches of 32, read by two workers. The
weights are random ones of a torchvision network, the same for all libraries.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision import models

IMAGE_SIZE, SIDE = 224, 256
BATCH_SIZE = 32
NUM_WORKERS = 2
CLASSES = [f"class {number:03d}" for number in range(1000)]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
COLUMNS = ["path", "predicted", "confidence"]


@dataclass(frozen=True)
class Weights:
    """The state dict of a torchvision network, in a file; others find what they need beside it."""

    arch: str
    file: Path

    def network(self) -> torch.nn.Module:
        """The network in evaluation mode."""
        network = models.get_model(self.arch, num_classes=len(CLASSES))
        network.load_state_dict(torch.load(self.file, weights_only=True))
        return network.eval()


def make_weights(arch: str, scratch: Path) -> Weights:
    """Random weights, made once."""
    file = scratch / f"{arch}.pth"
    if not file.exists():
        torch.manual_seed(0)
        torch.save(models.get_model(arch, num_classes=len(CLASSES)).state_dict(), file)
    return Weights(arch, file)
