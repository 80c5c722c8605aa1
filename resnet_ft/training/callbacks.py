"""What may watch or steer a run: hooks that `train_model` calls."""

from collections.abc import Sequence

from resnet_ft.training.state import TrainingState


class Callback:
    """Empty hooks: fill those that you need and hand it to `train_model(callbacks=[...])`.

    The order of a run: fit begins; epochs begin; phases "train" and "val" begin; steps begin and
    end; and so on outwards.
    """

    def on_fit_begin(self, state: TrainingState) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, state: TrainingState) -> None:
        """Before an epoch's first phase."""

    def on_phase_begin(self, state: TrainingState) -> None:
        """Before the first batch of "train" and of "val", in every epoch."""

    def on_step_begin(self, state: TrainingState) -> None:
        """Before every batch."""

    def on_step_end(self, state: TrainingState) -> None:
        """After every batch."""

    def on_phase_end(self, state: TrainingState) -> None:
        """After a phase; `state.row` has its loss and accuracy, and takes columns of one's own."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """After the validation of an epoch; `state.rows[-1]` is its row of the history."""

    def on_fit_end(self, state: TrainingState) -> None:
        """At the end, also where the run was interrupted."""

    def state_dict(self) -> dict[str, object]:
        """What has to be kept to go on later as if nothing had happened: tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from what `state_dict` gave."""


def notify(callbacks: Sequence[Callback], event: str, state: TrainingState) -> None:
    """Call one hook of every callback, in their order."""
    for callback in callbacks:
        getattr(callback, event)(state)
