"""Scores of another network than the one that trains, as `train_model` would give them."""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader

from resnet_ft import engine
from resnet_ft.evaluation.predictions import predict_logits
from resnet_ft.training.checks import likeliest


def validation_scores(
    model: nn.Module, loader: DataLoader, criterion: Callable
) -> dict[str, float]:
    """`val_loss` and `val_accuracy` over all samples; generators are left as they are."""
    with torch.random.fork_rng(devices=[]):  # a loader draws a number for its workers
        logits, labels = predict_logits(model, loader)
    # In batches, as train_model does: class weights make another mean of all at once.
    size = getattr(loader.batch_sampler, "batch_size", len(labels))
    device, loss_sum = engine.device(), 0.0
    with torch.inference_mode():
        for of_batch, true in zip(logits.split(size), labels.split(size), strict=True):
            loss_sum += criterion(of_batch.to(device), true.to(device)).item() * len(true)
    correct = (logits.argmax(dim=1) == likeliest(labels)).sum().item()
    return {"val_loss": loss_sum / len(labels), "val_accuracy": correct / len(labels)}
