"""Checkpoints: the one file format for a trained model.

A checkpoint is plain data (numbers, strings, lists, dicts, tensors) written by `torch.save` and
read with `weights_only=True`, so that opening one runs no code and needs no class of this library.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import v2

from resnet_ft.data.transforms import described_preprocessing, eval_transform
from resnet_ft.engine import unwrapped
from resnet_ft.errors import CheckpointError, ParameterError
from resnet_ft.files import atomic_write, user_path
from resnet_ft.models.build import build_model, num_outputs
from resnet_ft.reading import check_finite, read_json, read_saved, reading

_LARGEST_SIDE = 8192  # pixels that a checkpoint may ask for
_TYPES: dict[str, Any] = {
    **{"arch": str | None, "classes": list | None, "num_classes": int | None},
    **{"preprocessing": dict | None, "state_dict": dict, "scores": dict},
    **{"created": str, "versions": dict, "calibration": dict | None},
}
_FORMATS = tuple(f"resnet_ft checkpoint {number}" for number in (1, 2, 3))
# The first had no num_classes, the second no calibration.


@dataclass(frozen=True)
class Checkpoint:
    """A saved model: everything needed to build it again and to use it.

    `preprocessing` holds the fields of `Preprocessing` where `eval_transform` was used, and
    `ranges` where images had values beyond 8 bits; None without either. `scores` are those of the
    epoch that was saved. `calibration` is what `calibrate` found out about these weights.
    """

    arch: str | None
    classes: list[str] | None
    num_classes: int | None
    preprocessing: dict[str, Any] | None
    state_dict: dict[str, Tensor]
    scores: dict[str, float] = field(default_factory=dict)
    created: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    format: str = _FORMATS[-1]

    def load_into(self, model: nn.Module | None = None) -> nn.Module:
        """The saved model in evaluation mode: built anew, or the given one, filled.

        Raises CheckpointError where `build_model` does not know the model and none is given, or
        where the given one is another model.
        """
        if model is None:
            if self.arch is None:
                raise CheckpointError(
                    "The model of this checkpoint is not one of build_model's, so it cannot be "
                    "built again here. Make it yourself and give it as model=."
                )
            try:
                model = build_model(self.arch, len(self.class_names()), weights=None)
            except ParameterError as error:
                raise CheckpointError(f"The model cannot be built again: {error}") from error
        filled: Any = model
        try:
            filled.load_state_dict(self.state_dict)
        except RuntimeError as error:
            raise CheckpointError(
                "The checkpoint is of another model. If its layers were changed after build_model, "
                f"make it in the same way and give it as model=. {error}"
            ) from error
        filled.classes = self.classes
        if not isinstance(getattr(filled, "calibration", None), nn.Module):
            filled.calibration = self.calibration
        return filled.eval()

    def write(self, path: Path) -> None:
        """Write it to a new file. Raises OSError."""
        try:
            torch.save({**vars(self), "format": _FORMATS[-1]}, path)
        except RuntimeError as error:  # what PyTorch says of a full disk
            raise OSError(str(error).split("\n", 1)[0]) from error

    def transform(self) -> v2.Compose:
        """The evaluation transform of the training: from an RGB image to a tensor for the model.

        Raises CheckpointError where that was not `eval_transform`.
        """
        remedy = "Give the transform: Predictor.load(path, transform=...), for example."
        if self.preprocessing is None or set(self.preprocessing) == {"ranges"}:
            raise CheckpointError(
                "The model was trained with another transform than eval_transform, which a "
                f"checkpoint cannot hold. {remedy}"
            )
        with reading("The preprocessing of the checkpoint", CheckpointError, remedy):
            try:
                wanted = described_preprocessing(self.preprocessing)
            except ParameterError as error:
                raise ValueError(str(error)) from error
            if wanted is None:
                raise ValueError("it is empty")
            if wanted.side > _LARGEST_SIDE:
                raise ValueError(f"{wanted} is larger than {_LARGEST_SIDE} pixels")
            return eval_transform(wanted)

    def ranges(self) -> dict[str, list[float]]:
        """The `ranges` of `open_image` that the images of the training had; none for 8 bits."""
        remedy = "Save it again with save_checkpoint, or fetch it again from where it came."
        with reading("The ranges of the checkpoint", CheckpointError, remedy):
            found = dict((self.preprocessing or {}).get("ranges") or {})
            ranges = {str(kind): [float(low), float(high)] for kind, (low, high) in found.items()}
            if not all(
                low < high and np.isfinite([low, high]).all() for low, high in ranges.values()
            ):
                raise ValueError(f"{found}")
            return ranges

    def class_names(self) -> list[str]:
        """The names of the outputs; numbers where the data set named no classes."""
        if self.classes:
            return self.classes
        if self.arch is None or self.num_classes is None:
            raise CheckpointError(
                "The checkpoint holds no class names. Save it with save_checkpoint(..., "
                "classes=...) or use Predictor(model, classes, transform) with your own names."
            )
        return [str(label) for label in range(self.num_classes)]


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    *,
    classes: list[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    scores: dict[str, float] | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> Path:
    """Save a model with its class names and preprocessing; like torch.save it replaces the file.

    `classes` are by default those that `train_model` recorded in `model.classes`. `state_dict`
    replaces the model's own, where the best weights are not the present ones. A reader never sees
    half a file.
    """
    model = unwrapped(model)
    classes = classes or getattr(model, "classes", None)
    if twice := _names_twice(classes or ()):
        raise CheckpointError(f"Several classes are called {twice}. Give each a name of its own.")
    tensors = model.state_dict() if state_dict is None else state_dict
    checkpoint = Checkpoint(
        arch=getattr(model, "arch", None),
        classes=[str(name) for name in classes] if classes is not None else None,
        num_classes=len(classes) if classes is not None else num_outputs(model),
        preprocessing=preprocessing,
        state_dict={name: one.detach().cpu().contiguous() for name, one in tensors.items()},
        scores={name: float(score) for name, score in (scores or {}).items()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"torch": str(torch.__version__), "torchvision": str(torchvision.__version__)},
    )
    with atomic_write(path) as temporary:
        checkpoint.write(temporary)
    return user_path(path)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote, on the CPU and without running any code from the file.

    Or what `export_safetensors` wrote, with the JSON file beside it.

    Raises CheckpointError, with the remedy, for a file that is missing, damaged, or something else.
    """
    path = user_path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}. Train a model first (notebook 03).")
    remedy = "Save it again with save_checkpoint, or fetch it again from where it came."
    with reading(path, CheckpointError, remedy):
        with path.open("rb") as file:
            is_exported = path.suffix == ".safetensors"
            content = _read_exported(path) if is_exported else read_saved(file)
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        if found == _FORMATS[0] and "num_classes" not in content:
            last = [*(content.get("state_dict") or {}).values()][-1:] if content.get("arch") else []
            heads = [content.get("classes") or (last[0] if last else ())]  # a known head's bias
            content["num_classes"] = len(heads[0]) or None
        if found in _FORMATS[:-1]:
            content.setdefault("calibration", None)
        if found not in _FORMATS or set(content) != {one.name for one in fields(Checkpoint)}:
            raise CheckpointError(
                f"{path} is not in the format {_FORMATS[-1]!r} (found {str(found)[:80]!r}). A "
                "newer format needs a newer resnet_ft: update it. For bare weights use "
                "build_model(arch, num_classes, weights=path)."
            )
        _check(checkpoint := Checkpoint(**content))
    return checkpoint


def _read_exported(path: Path) -> dict[str, Any]:
    content, tensors = read_json(path.with_suffix(".json")), load_file(path)
    content["state_dict"] = {name: tensors[name] for name in content["state_dict"]}  # in order
    if (content["calibration"] or {}).get("means"):
        content["calibration"]["means"] = torch.tensor(content["calibration"]["means"]).half()
    return content


def weights_digest(model: nn.Module) -> str:
    """A digest of a model's structure and weights."""
    return tensors_digest(model.state_dict(), f"{type(model).__name__} {model}")


def tensors_digest(tensors: Mapping[str, Tensor], structure: str = "") -> str:
    """A digest of weights, which other versions of the libraries describe as other structures."""
    digest = hashlib.sha256(structure.encode())
    for name, tensor in tensors.items():
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(content.numpy())
    return digest.hexdigest()


def _check(checkpoint: Checkpoint) -> None:
    """Raise ValueError for a content that no training leaves."""
    for name, kind in _TYPES.items():
        value = getattr(checkpoint, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"its {name} is a {type(value).__name__}")
    tensors, names, count = checkpoint.state_dict, checkpoint.classes, checkpoint.num_classes
    if not all(isinstance(key, str) and torch.is_tensor(one) for key, one in tensors.items()):
        raise ValueError("its state_dict holds more than tensors")
    check_finite(tensors)
    if names is not None:
        if not all(isinstance(name, str) for name in names):
            raise ValueError("its classes are more than names")
        if twice := _names_twice(names):
            raise ValueError(f"several of its classes are called {twice}")
        if len(names) not in (0, count):
            raise ValueError(f"it names {len(names)} classes and counts {count}")
    outputs = {len(one) for one in tensors.values() if one.ndim}
    if checkpoint.arch is not None and count is not None and count not in outputs:
        raise ValueError(f"it counts {count} classes, and no layer has so many outputs")


def _names_twice(names: Iterable[object]) -> str:
    return ", ".join(name for name, count in Counter(map(str, names)).items() if count > 1)[:200]
