"""The transfer-learning tutorial of PyTorch: its transforms, batches, optimizer and loop."""

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from tutorial_loop import run_phase

from finetuning import EPOCHS, IMAGE_SIZE, MEAN, NUM_WORKERS, STD
from finetuning.network import pretrained


def _loaders(data_dir: Path) -> dict[str, DataLoader]:
    normalised = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    crop = [transforms.RandomResizedCrop(IMAGE_SIZE), transforms.RandomHorizontalFlip()]
    resize = [transforms.Resize(IMAGE_SIZE * 256 // 224), transforms.CenterCrop(IMAGE_SIZE)]
    return {
        folder: DataLoader(
            datasets.ImageFolder(data_dir / folder, transforms.Compose([*steps, *normalised])),
            batch_size=4,
            shuffle=True,
            num_workers=NUM_WORKERS,
        )
        for folder, steps in (("Train", crop), ("Val", resize))
    }


def _recipe(data_dir: Path, weights: Path, seed: int, *, frozen: bool) -> dict[str, float]:
    torch.manual_seed(seed)
    loaders = _loaders(data_dir)
    model = pretrained(weights, len(loaders["Train"].dataset.classes))
    if frozen:
        for parameter in model.parameters():
            parameter.requires_grad = False
        for parameter in model.classifier.parameters():
            parameter.requires_grad = True
    trained = model.classifier.parameters() if frozen else model.parameters()
    optimizer = SGD(trained, lr=0.001, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=7, gamma=0.1)
    with tempfile.TemporaryDirectory() as scratch:
        accuracies = _train(model, loaders, optimizer, scheduler, Path(scratch) / "best.pt")
    return {"accuracy": max(accuracies), "last_epoch": accuracies[-1]}


def _train(
    model: nn.Module,
    loaders: dict[str, DataLoader],
    optimizer: SGD,
    scheduler: StepLR,
    best: Path,
) -> list[float]:
    """The tutorial's train_model; the validation accuracy of each epoch."""
    criterion, accuracies = nn.CrossEntropyLoss(), []
    for _ in range(EPOCHS):
        run_phase(model, loaders["Train"], criterion, optimizer)
        scheduler.step()
        accuracies.append(run_phase(model, loaders["Val"], criterion))
        if accuracies[-1] == max(accuracies):
            torch.save(model.state_dict(), best)
    model.load_state_dict(torch.load(best, weights_only=True))
    return accuracies


RECIPES = {"frozen": partial(_recipe, frozen=True), "full": partial(_recipe, frozen=False)}
