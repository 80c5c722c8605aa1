"""Which layers of a ResNet train."""

from torch import nn

TRAINED = {"frozen": ("fc",), "layer4": ("layer4", "fc")}


def train_only(model: nn.Module, recipe: str) -> list[nn.Parameter]:
    """Let these layers train and no others; the parameters that train."""
    trained = [p for name in TRAINED[recipe] for p in model.get_submodule(name).parameters()]
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad = True
    return trained
