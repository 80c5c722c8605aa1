"""Whether a model fits the images of a data loader: tried on one of them, before any work."""

from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, IterableDataset, default_collate

from resnet_ft import engine
from resnet_ft.data.batches import EpochBatchSampler
from resnet_ft.data.dataset import seeded
from resnet_ft.errors import ParameterError
from resnet_ft.models.freezing import evaluation_mode


def check_model(model: nn.Module, loader: DataLoader, *, micro_batches: int | None = None) -> None:
    """Raise ParameterError where the model fails on a loader's images, or gives no logits.

    With `micro_batches`, into which each training batch is split, also where classes and outputs
    are not equally many, or batch normalisation could not learn from the smallest part. Generators,
    modes and statistics stay as they are. The images of a stream are not known beforehand.
    """
    if (images := _first_image(loader)) is None:
        return
    device = next((one.device for one in model.parameters()), engine.device())
    name, shape = type(model).__name__, f"{tuple(images.shape)} in {_type_of(images)}"
    learning = {module: of for of, module in model.named_modules() if _learns(module)}
    single: list[str] = []  # layers that get one value per channel from an image

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0][:1, 0].numel() == 1:
            single.append(learning[module])

    hooks = [module.register_forward_pre_hook(look) for module in learning]
    try:
        with evaluation_mode(model), torch.no_grad(), engine.accelerator().autocast(), seeded(0):
            logits = model(images.to(device))
    except torch.OutOfMemoryError:
        return  # training splits its batches, and says so
    except Exception as error:  # a model is anybody's code
        takes = _first_layer(model)
        raise ParameterError(
            f"{name} cannot take the loader's images, {shape}: {str(error).splitlines()[0]}. "
            f"{takes}Change the model (model.float() makes it compute in float32), or the images "
            "with a transform of your own."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    classes = (micro_batches and getattr(loader.dataset, "classes", None)) or ()
    outputs = logits.shape[1:] if isinstance(logits, Tensor) else type(logits).__name__
    if isinstance(outputs, str) or len(outputs) != 1 or (classes and outputs[0] != len(classes)):
        raise ParameterError(
            f"{name} gives {outputs if isinstance(outputs, str) else list(outputs)} for an image, "
            f"where logits for {len(classes) or 'all'} classes are needed, one per class (for two "
            "classes too, and no others). Build it with num_classes="
            'len(dataloaders["train"].dataset.classes).'
        )
    if micro_batches and single and _smallest_batch(loader) // micro_batches < 2:
        raise ParameterError(
            f"Batch normalisation ({single[0]}) cannot learn from a single image of this size: it "
            "gets one value per channel, with no other to compare it with. Choose a batch_size of "
            "2 or more per micro-batch, larger images, or freeze_batchnorm(model)."
        )


def _first_image(loader: DataLoader) -> Tensor | None:
    """A batch of one image of a loader, if it is known how to make it; draws nothing at random."""
    source: Any = getattr(loader, "loader", loader)  # what a MixedLoader mixes
    dataset: Any = source.dataset
    if source.batch_sampler is None or isinstance(dataset, IterableDataset):
        return None
    own = isinstance(source.batch_sampler, EpochBatchSampler)
    collate = default_collate if own else source.collate_fn
    try:
        with seeded(0):
            images = collate([dataset[0]])[0]
    except (LookupError, TypeError):  # a data set with keys of its own
        return None
    return images if isinstance(images, Tensor) and images.is_floating_point() else None


def _learns(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and any(p.requires_grad for p in module.parameters())


def _type_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first_layer(model: nn.Module) -> str:
    """What the first layer with weights takes, as a sentence."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            inputs = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
            kind = "channels" if isinstance(layer, nn.Conv2d) else "features"
            return f"Its first layer, {name}, takes {inputs} {kind} in {_type_of(layer.weight)}. "
    return ""


def _smallest_batch(loader: DataLoader) -> int:
    """How many images the smallest training batch has."""
    dataset, sampler = loader.dataset, loader.batch_sampler
    images = len(dataset) if isinstance(dataset, Sized) else 0
    size = min(images, getattr(sampler, "batch_size", None) or images)
    rest = images % size if size else 0
    joins = isinstance(sampler, EpochBatchSampler) and rest == 1
    return size if joins or not rest or getattr(sampler, "drop_last", False) else rest
