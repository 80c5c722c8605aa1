"""The transfer-learning tutorial of PyTorch: its transforms, optimizer and loop, but batches of 16.

As there, a frozen layer's BatchNorm is in training mode, and the best weights are kept in a file.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tutorial_loop import run_phase

from training import BATCH_SIZE, EPOCHS, IMAGE_SIZE, NUM_WORKERS
from training.clock import Clock
from training.layers import TRAINED, train_only

_NORMALISED = [
    transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
]
TRANSFORMS = {
    "Train": transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE),
            transforms.RandomHorizontalFlip(),
            *_NORMALISED,
        ]
    ),
    "Val": transforms.Compose(
        [
            transforms.Resize(IMAGE_SIZE * 256 // 224),
            transforms.CenterCrop(IMAGE_SIZE),
            *_NORMALISED,
        ]
    ),
}


def image_loaders(data_dir: Path) -> dict[str, DataLoader]:
    """Batches of images and labels, of "Train" and "Val"."""
    return {
        split: DataLoader(
            ImageFolder(data_dir / split, transform),
            batch_size=BATCH_SIZE,
            shuffle=split == "Train",
            num_workers=NUM_WORKERS,
            persistent_workers=True,
        )
        for split, transform in TRANSFORMS.items()
    }


def _train(data_dir: Path, _scratch: Path, model: nn.Module, clock: Clock, *, recipe: str) -> None:
    loaders = image_loaders(data_dir)
    optimizer = SGD(train_only(model, recipe), lr=0.001, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=7, gamma=0.1)
    criterion, best_accuracy = nn.CrossEntropyLoss(), 0.0
    with tempfile.TemporaryDirectory() as temporary:
        best = Path(temporary) / "best.pt"
        torch.save(model.state_dict(), best)
        clock.lap()
        for _ in range(EPOCHS):
            run_phase(model, loaders["Train"], criterion, optimizer)
            scheduler.step()
            accuracy = run_phase(model, loaders["Val"], criterion)
            if accuracy > best_accuracy:
                best_accuracy = accuracy
                torch.save(model.state_dict(), best)
            clock.lap()
        model.load_state_dict(torch.load(best, weights_only=True))


RECIPES = {recipe: partial(_train, recipe=recipe) for recipe in TRAINED}
