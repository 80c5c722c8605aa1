"""The loop of PyTorch's transfer-learning tutorial, a pass over one split at a time."""

import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader


def run_phase(
    model: nn.Module, loader: DataLoader, criterion: nn.Module, optimizer: SGD | None = None
) -> float:
    """A pass over the images, which trains where there is an optimizer; the accuracy."""
    training = optimizer is not None
    model.train(training)
    running_loss, correct = 0.0, 0
    for images, labels in loader:
        if training:
            optimizer.zero_grad()
        with torch.set_grad_enabled(training):
            outputs = model(images)
            loss = criterion(outputs, labels)
            if training:
                loss.backward()
                optimizer.step()
        running_loss += loss.item() * len(labels)
        correct += (outputs.argmax(1) == labels).sum().item()
    return correct / len(loader.dataset)
