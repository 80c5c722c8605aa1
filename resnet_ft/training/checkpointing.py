"""What keeps a run safe: where it stands is saved again and again, while it goes on."""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from os import PathLike

from resnet_ft import engine, processes
from resnet_ft.errors import ParameterError, TrainingError
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.interrupts import Interrupts
from resnet_ft.training.resuming import capture, position_of
from resnet_ft.training.snapshots import empty_older, next_name, write_snapshot
from resnet_ft.training.state import TrainingState


class Checkpointer(Callback):
    """Saves where a run stands after every epoch, every few minutes, and when it is broken off.

    `train_model` adds one to every run with a `run_dir`; hand in your own for other `minutes`. It
    copies weights, optimizer, callbacks, generators and position, which a thread writes to
    last.0.pt and last.1.pt in turn. Ctrl-C and SIGTERM end the run after the present step, whose
    outcome is saved; a second Ctrl-C ends it at once. After an exception the last complete step is
    saved, unless something was changed since. Raises ParameterError for callbacks and schedulers
    that hold more than plain data.
    """

    def __init__(self, minutes: float = 5.0):
        if not minutes > 0:
            raise ParameterError(f"minutes={minutes} should be more than 0.")
        self.minutes = minutes
        self._interrupts = Interrupts()

    def on_fit_begin(self, state: TrainingState) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="resnet_ft-save")
        self._writing: Future | None = None
        network = engine.unwrapped(state.model)
        self._tensors = [*network.parameters(), *network.buffers()]
        self._note_completed(state)
        if state.saves:
            self._is_new, self._saved = False, time.perf_counter()
            self._saved_position = self._position
        else:
            self._save(state)
        self._interrupts.watch()

    def on_phase_begin(self, state: TrainingState) -> None:
        if _is_apart(state):  # what follows cannot be saved before the epoch's end
            self._complete(state, is_due=True)

    def on_step_end(self, state: TrainingState) -> None:
        if not _is_apart(state):
            is_due = time.perf_counter() - self._saved > 60 * self.minutes
            self._complete(state, is_due=is_due)

    def on_epoch_end(self, state: TrainingState) -> None:
        self._complete(state, is_due=True)

    def on_phase_end(self, state: TrainingState) -> None:
        if state.phase == "val":  # until the epoch's end, schedules and callbacks are amid it
            self._is_new = False

    def on_interrupt(self, state: TrainingState) -> None:
        lost_its_way = isinstance(sys.exc_info()[1], TrainingError)  # a loss of nan, for example
        if self._is_new and self._version == self._present_version() and not lost_its_way:
            self._save(state)
        if state.run is not None:
            where = "epoch {epoch}, {phase} step {step}".format(**self._saved_position)
            print(f"{state.run.folder} broke off, saved in {where}: run the same again to go on.")

    def on_fit_end(self, state: TrainingState) -> None:
        try:
            self._raise_what_failed(wait=True)
            self._thread.shutdown()
            if state.run is not None:
                state.run.storage.settle()
                if state.is_finished:
                    with suppress(OSError):  # it only frees space
                        empty_older(state.run.folder, state.saves)
        finally:
            self._interrupts.forget()

    def _complete(self, state: TrainingState, *, is_due: bool) -> None:
        """After a step or more: save if it is time to, and end the run if that was asked for."""
        self._note_completed(state)
        if is_due:
            self._save(state)
        self._interrupts.raise_received()

    def _note_completed(self, state: TrainingState) -> None:
        self._position, self._version = position_of(state), self._present_version()
        self._is_new = True

    def _present_version(self) -> int:
        """A number that changes with every change of a weight or a buffer, in place as it is."""
        return sum(tensor._version for tensor in self._tensors)

    def _save(self, state: TrainingState) -> None:
        """Copy everything now, and have it written; a copy that still waits for that is dropped."""
        if state.run is not None:  # as in the main process
            self._raise_what_failed()
            content = capture(state, self._position)
            self._writing = self._thread.submit(_write, state, content)
        self._is_new, self._saved = False, time.perf_counter()
        self._saved_position = self._position

    def _raise_what_failed(self, *, wait: bool = False) -> None:
        """Hear of a save that failed; one that has not begun is dropped, or waited for."""
        if self._writing is None or (not wait and self._writing.cancel()):
            return
        if wait or self._writing.done():
            self._writing.result()


def kept_safe(callbacks: Sequence[Callback], run_dir: str | PathLike | None) -> list[Callback]:
    """Those that this process needs, and a Checkpointer behind them, if there is a run to keep."""
    own = [callback for callback in callbacks if isinstance(callback, Checkpointer)]
    if own and run_dir is None:
        raise ParameterError("A Checkpointer saves into the folder of a run: give run_dir as well.")
    others = [callback for callback in callbacks if callback not in own]
    others = [one for one in others if processes.is_main() or not one.only_in_main_process]
    return others if run_dir is None else [*others, *(own[:1] or [Checkpointer()])]


def _is_apart(state: TrainingState) -> bool:
    """Whether processes are on their own: each validates its share, in as many steps as it has."""
    return state.phase == "val" and processes.count() > 1


def _write(state: TrainingState, content: dict[str, object]) -> None:
    state.saves += 1
    storage = state.run.storage
    name = next_name(storage.last_whole)  # never over what counts if this fails
    if storage.write_in(name, lambda folder: write_snapshot(folder / name, state.saves, content)):
        storage.last_whole = name
