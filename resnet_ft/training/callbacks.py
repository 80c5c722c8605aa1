"""What may watch or steer a run: hooks that `train_model` calls."""

from resnet_ft.training.state import TrainingState


class Callback:
    """Empty hooks: fill those that you need and hand it to `train_model(callbacks=[...])`.

    The order of a run: fit begins; epochs begin; phases "train" and "val" begin; steps begin and
    end; and so on outwards. In a run that goes on amid an epoch, fit begins, `load_state_dict` is
    called where there was a `state_dict`, and steps follow.

    Of several processes each has callbacks of its own, but for those that are
    `only_in_main_process`, since they show or write something.
    """

    only_in_main_process = False

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

    def on_interrupt(self, state: TrainingState) -> None:
        """When an exception or Ctrl-C ends the run, before the model gets its best weights back."""

    def on_fit_end(self, state: TrainingState) -> None:
        """At the end, also after `on_interrupt`; the model has its best weights."""

    def state_dict(self) -> dict[str, object]:
        """What has to be kept to go on later as if nothing had happened: tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from what `state_dict` gave."""


def notify(state: TrainingState, event: str) -> None:
    """Call one hook of every callback of the run, in their order."""
    for callback in state.callbacks:
        getattr(callback, event)(state)
