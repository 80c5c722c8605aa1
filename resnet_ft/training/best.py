"""The best epoch so far: its weights in memory, and on disk where there is a run directory."""

from torch import Tensor, nn
from torch.utils.data import DataLoader

from resnet_ft.models.checkpoint import save_checkpoint
from resnet_ft.training.runs import Run


class BestModel:
    """Keeps the weights of the epoch with the highest validation accuracy, ties by lower loss."""

    def __init__(self, model: nn.Module, val: DataLoader, run: Run | None = None):
        self._model = model
        self._preprocessing = getattr(val.dataset, "preprocessing", None)
        self._run = run
        self._rank = (-1.0, 0.0)
        self._weights: dict[str, Tensor] = {}

    def update(self, row: dict[str, float]) -> bool:
        """Keep the present weights if this row of the history is the best; say whether it is."""
        rank = (row["val_accuracy"], -row["val_loss"])
        if rank <= self._rank:
            return False
        self._rank = rank
        state = self._model.state_dict()
        self._weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        if self._run is not None:
            save_checkpoint(
                self._run.best,
                self._model,
                preprocessing=self._preprocessing,
                scores=row,
                state_dict=self._weights,
            )
        return True

    def restore(self) -> None:
        """Give the model its best weights back; before the first epoch's end it keeps its own."""
        if self._weights:
            self._model.load_state_dict(self._weights)
        self._model.eval()
