"""The only file format: what a saved model is.

A checkpoint is plain data (numbers, strings, lists, dicts, tensors) written by `torch.save` and
read with `weights_only=True`, so that opening one runs no code and needs no class of this library.
"""

import pickle
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms import v2

from resnet_ft.data.transforms import eval_transform
from resnet_ft.engine import unwrapped
from resnet_ft.errors import CheckpointError, ParameterError
from resnet_ft.files import atomic_write
from resnet_ft.models.build import build_model

_FORMAT = "resnet_ft checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """A saved model: everything needed to build it again and to use it rightly.

    `preprocessing` is what `eval_transform` has to be called with (image_size, mean, std), or None
    where a transform of one's own was used. `scores` are those of the epoch that was saved.
    """

    arch: str | None
    classes: list[str] | None
    preprocessing: dict[str, object] | None
    state_dict: dict[str, Tensor]
    scores: dict[str, float] = field(default_factory=dict)
    created: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    format: str = _FORMAT

    def load_into(self, model: nn.Module | None = None) -> nn.Module:
        """The saved network in evaluation mode: built anew, or the one handed in, filled.

        Raises CheckpointError where `build_model` does not know the network and none is handed in,
        or where the one handed in is another network.
        """
        model = self._build() if model is None else model
        try:
            model.load_state_dict(self.state_dict)
        except RuntimeError as error:
            raise CheckpointError(
                "The checkpoint is of another network. If its layers were changed after "
                f"build_model, make it in the same way and hand it in as model=. {error}"
            ) from error
        model.classes = self.classes
        return model.eval()

    def _build(self) -> nn.Module:
        if self.arch is None:
            raise CheckpointError(
                "The checkpoint holds a network that build_model did not make, so it does not know "
                "how to build it. Make the network yourself and hand it in as model=."
            )
        try:
            return build_model(self.arch, len(self.class_names()), weights=None)
        except ParameterError as error:
            raise CheckpointError(f"The network cannot be built again: {error}") from error

    def transform(self) -> v2.Compose:
        """The evaluation transform of the training: an RGB image to a tensor for the network.

        Raises CheckpointError where that was a transform of one's own.
        """
        if self.preprocessing is None:
            raise CheckpointError(
                "The model was trained with an evaluation transform of its own, which a checkpoint "
                "cannot hold. Hand it in, for example as Predictor.load(path, transform=...)."
            )
        return eval_transform(**self.preprocessing)

    def class_names(self) -> list[str]:
        """What the outputs stand for; numbers where the data set named no classes."""
        if self.classes:
            return self.classes
        if self.arch is None:
            raise CheckpointError(
                "The checkpoint holds no class names. Save it with save_checkpoint(..., "
                "classes=...) or use Predictor(model, classes, transform) with names of your own."
            )
        # The head of the networks that build_model knows comes last: its bias has a value a class.
        return [str(label) for label in range(len(list(self.state_dict.values())[-1]))]


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    *,
    classes: list[str] | None = None,
    preprocessing: dict[str, object] | None = None,
    scores: dict[str, float] | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> Path:
    """Save a model with its class names and preprocessing; like torch.save it replaces the file.

    `classes` are by default those that `train_model` noted in `model.classes`. `state_dict` takes
    the place of the model's own, where the best weights are not the present ones. A reader never
    sees half a file.
    """
    model = unwrapped(model)
    classes = classes or getattr(model, "classes", None)
    checkpoint = Checkpoint(
        arch=getattr(model, "arch", None),
        classes=[str(name) for name in classes] if classes is not None else None,
        preprocessing=preprocessing,
        state_dict={},
        scores={name: float(score) for name, score in (scores or {}).items()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"torch": str(torch.__version__), "torchvision": str(torchvision.__version__)},
    )
    tensors = model.state_dict() if state_dict is None else state_dict
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            torch.save({**asdict(checkpoint), "state_dict": on_cpu}, temporary)
        except RuntimeError as error:  # what PyTorch says of a full disk
            raise OSError(str(error).split("\n", 1)[0]) from error
    return Path(path)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote, on the CPU and without running any code from the file.

    Raises CheckpointError, with the remedy, for a file that is missing, damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}. Train a model first (notebook 03).")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds more than plain data "
            f"({error}). Save it again with save_checkpoint, or fetch it again from where it came."
        ) from error
    expected = {one.name for one in fields(Checkpoint)}
    if (
        not isinstance(content, dict)
        or content.get("format") != _FORMAT
        or set(content) != expected
    ):
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} is not in the format {_FORMAT!r} (found {found!r}). For bare weights use "
            "build_model(arch, num_classes, weights=path)."
        )
    return Checkpoint(**content)
