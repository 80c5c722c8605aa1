"""When features that are stored are those that are wanted: same weights, transform and files."""

import hashlib
import secrets
from collections.abc import Callable, Iterator

import torch
from torch import nn

from resnet_ft.data.cache import file_keys
from resnet_ft.data.dataset import ImageDataset
from resnet_ft.features.stored import NAMELESS
from resnet_ft.files import fingerprint

_FORMAT = 1  # to be raised with any change of how features are computed
_SHOWN_WHOLE = ("torchvision.transforms", "resnet_ft.data.transforms")


def feature_key(weights: str, dataset: ImageDataset, epoch: int | None) -> str:
    """A digest of what features depend on; one that was never seen before where that is not known.

    `weights` is `network_digest`'s. `epoch` is None where the transform draws nothing at random.
    """
    files = file_keys(dataset.images.paths, dataset.images.side or 0).tobytes()
    seed = None if epoch is None else (dataset.seed, epoch)
    transform = _described(dataset.transform)
    if transform is None:
        return f"{NAMELESS}{secrets.token_hex(8)}"
    return fingerprint([_FORMAT, weights, transform, files, seed])


def network_digest(network: nn.Module) -> str:
    """A digest of a network's structure and weights."""
    digest = hashlib.sha256(f"{type(network).__name__} {network}".encode())
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _described(transform: Callable) -> str | None:
    """A transform in words, where they say all of it."""
    steps = list(_steps(transform))
    known = all(type(step).__module__.startswith(_SHOWN_WHOLE) for step in steps)
    hidden = any(type(step).__name__ == "Lambda" for step in steps)
    return repr(transform) if known and not hidden else None


def _steps(transform: Callable) -> Iterator[Callable]:
    yield transform
    for step in getattr(transform, "transforms", ()):
        yield from _steps(step)
