"""The best weights so far: in memory, and on disk where there is a run directory."""

from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import DataLoader

from resnet_ft.errors import CheckpointError
from resnet_ft.models.checkpoint import load_checkpoint, save_checkpoint
from resnet_ft.training.runs import Run


class BestModel:
    """Keeps the weights with the highest validation accuracy, ties by lower loss."""

    def __init__(self, model: nn.Module, val: DataLoader, run: Run | None = None):
        self._model = model
        self._preprocessing = getattr(val.dataset, "preprocessing", None)
        self._run = run
        self._scores: dict[str, float] = {}
        self._weights: dict[str, Tensor] = {}

    def update(self, row: dict[str, float], model: nn.Module | None = None) -> bool:
        """Keep the weights if this row of the history is the best so far; say whether it is.

        `model` is another network of the same layers, where not the trained one itself was scored.
        """
        if self._scores and _rank(row) <= _rank(self._scores):
            return False
        self._scores = {name: float(value) for name, value in row.items()}
        model = self._model if model is None else model
        tensors = model.state_dict()
        self._weights = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        self._save(whole_model(model).state_dict())
        return True

    def restore(self) -> None:
        """Give the model its best weights back; before the first epoch's end it keeps its own."""
        if self._weights:
            self._model.load_state_dict(self._weights)
        whole_model(self._model).eval()
        self._model.eval()

    def state_dict(self) -> dict[str, object]:
        """The best weights and their scores."""
        return {"scores": self._scores, "weights": self._weights}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from what `state_dict` gave; what best.pt has lost passes through the model."""
        self._scores, self._weights = state["scores"], state["weights"]
        if self._weights and self._run is not None and not self._is_saved():
            self._model.load_state_dict(self._weights)
            self._save(whole_model(self._model).state_dict())

    def _is_saved(self) -> bool:
        try:
            return _rank(load_checkpoint(self._run.best).scores) == _rank(self._scores)
        except CheckpointError:  # lost, or written by half when the process was killed
            return False

    def _save(self, weights: dict[str, Tensor]) -> None:
        if self._run is None:
            return

        def save(path: Path) -> None:
            save_checkpoint(
                path,
                whole_model(self._model),
                preprocessing=self._preprocessing,
                scores=self._scores,
                state_dict=weights,
            )

        self._run.storage.write(self._run.best.name, save)


def _rank(scores: dict[str, float]) -> tuple[float, float]:
    return scores["val_accuracy"], -scores["val_loss"]


def whole_model(model: nn.Module) -> nn.Module:
    """The network that a part of it, which trains on precomputed features, belongs to."""
    return getattr(model, "full_model", model)
