"""The best weights so far: in memory, and on disk where there is a run directory."""

from torch import Tensor, nn
from torch.utils.data import DataLoader

from resnet_ft.models.checkpoint import save_checkpoint
from resnet_ft.training.runs import Run


class BestModel:
    """Keeps the weights with the highest validation accuracy, ties by lower loss."""

    def __init__(self, model: nn.Module, val: DataLoader, run: Run | None = None):
        self._model = model
        self._preprocessing = getattr(val.dataset, "preprocessing", None)
        self._run = run
        self._rank = (-1.0, 0.0)
        self._weights: dict[str, Tensor] = {}

    def update(self, row: dict[str, float], model: nn.Module | None = None) -> bool:
        """Keep the weights if this row of the history is the best so far; say whether it is.

        `model` is another network of the same layers, where not the trained one itself was scored.
        """
        rank = (row["val_accuracy"], -row["val_loss"])
        if rank <= self._rank:
            return False
        self._rank = rank
        model = self._model if model is None else model
        tensors = model.state_dict()
        self._weights = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        if self._run is not None:
            save_checkpoint(
                self._run.best,
                whole_model(self._model),
                preprocessing=self._preprocessing,
                scores=row,
                state_dict=whole_model(model).state_dict(),
            )
        return True

    def restore(self) -> None:
        """Give the model its best weights back; before the first epoch's end it keeps its own."""
        if self._weights:
            self._model.load_state_dict(self._weights)
        whole_model(self._model).eval()
        self._model.eval()


def whole_model(model: nn.Module) -> nn.Module:
    """The network that a part of it, which trains on precomputed features, belongs to."""
    return getattr(model, "full_model", model)
