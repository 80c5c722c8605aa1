"""What can be known to be wrong before work is lost: model, optimizer, a batch, a loss."""

import math

from torch import Tensor, nn

from resnet_ft import processes
from resnet_ft.errors import ParameterError, TrainingError
from resnet_ft.training.state import TrainingState


def check_training(state: TrainingState) -> None:
    """Raise TrainingError or ParameterError for what would waste a run."""
    if not isinstance(state.num_epochs, int) or state.num_epochs < 0:
        raise ParameterError(f"num_epochs={state.num_epochs!r} should be a whole number.")
    missing = [phase for phase in ("train", "val") if phase not in state.dataloaders]
    if missing:
        raise ParameterError(
            f"dataloaders lacks {' and '.join(missing)}. Give a dict of two loaders, as "
            "make_dataloaders returns it."
        )
    _check_shares(state)
    trainable = {id(parameter) for parameter in trainable_parameters(state.model)}
    classes = [getattr(state.dataloaders[p].dataset, "classes", None) for p in ("train", "val")]
    if None not in classes and list(classes[0]) != list(classes[1]):
        raise TrainingError(
            f"The training classes {classes[0]} and the validation classes {classes[1]} differ, so "
            "their labels do not mean the same. Make both loaders with make_dataloaders."
        )
    held = {
        id(parameter) for group in state.optimizer.param_groups for parameter in group["params"]
    }
    if not trainable & held:
        raise TrainingError(
            "The optimizer holds none of the layers that train. Make it after the model is built "
            "and frozen: Adam(p for p in model.parameters() if p.requires_grad)."
        )


def _check_shares(state: TrainingState) -> None:
    """Every process needs an image of each batch; with fewer it would wait for ever."""
    count = processes.count()
    sizes = {"batch_size": getattr(state.dataloaders["train"].batch_sampler, "batch_size", None)}
    for phase, loader in state.dataloaders.items():
        sizes[f"the number of {phase} images"] = getattr(loader.batch_sampler, "num_samples", None)
    for name, size in sizes.items():
        if size is not None and size < count:
            raise ParameterError(f"{name} is {size}, for {count} processes. Take fewer of them.")


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen. Raises TrainingError where there are none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise TrainingError("Every layer is frozen. Call unfreeze(model) or freeze(model, 'fc').")
    return parameters


def likeliest(labels: Tensor) -> Tensor:
    """Labels (N,) of batches whose labels are numbers (N,) or, mixed, probabilities (N, C)."""
    return labels.argmax(dim=1) if labels.ndim == 2 else labels


def check_batch(logits: Tensor, labels: Tensor) -> None:
    """Raise TrainingError where a label has no output; a GPU would say "device-side assert"."""
    highest_label = labels.shape[1] - 1 if labels.ndim == 2 else int(labels.max())
    if logits.ndim != 2 or highest_label >= logits.shape[1]:
        raise TrainingError(
            f"The model's output has shape {tuple(logits.shape)}, but there is a label "
            f"{highest_label}. It should be (batch, classes): build the model with num_classes="
            'len(dataloaders["train"].dataset.classes).'
        )


def check_finite(loss: float, state: TrainingState) -> None:
    """Raise TrainingError, with what to try, for a loss that is infinite or not a number."""
    if not math.isfinite(loss):
        kept = "The model has its best weights so far." if state.rows else "No epoch was completed."
        raise TrainingError(
            f"The {state.phase} loss became {loss} in epoch {state.epoch}, step {state.step}. Try "
            f"a learning rate ten times lower (now {state.learning_rate:g}), and look for broken "
            f"images or labels with notebook 02. {kept}"
        )


def check_not_empty(state: TrainingState) -> None:
    """Raise TrainingError for a loader that delivered nothing."""
    if not state.count:
        raise TrainingError(
            f"The {state.phase} loader delivers nothing. Has it fewer than a batch, with drop_last?"
        )
