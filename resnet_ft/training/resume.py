"""Resuming: what a run is made of, saved as plain data while it trains and when it is stopped."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from os import PathLike
from types import FrameType

import numpy as np
from torch import Tensor

from resnet_ft import distributed, engine
from resnet_ft.errors import ParameterError, RunError, TrainingError
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.rng import draw_apart, generator_states, set_generator_states
from resnet_ft.training.run import check_unchanged
from resnet_ft.training.state import TrainingState
from resnet_ft.training.storage import empty_older, next_name, write_snapshot

_TO_END = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """Notes Ctrl-C and SIGTERM from `watch` until `forget`; a second Ctrl-C interrupts at once.

    What the process ignores, as one in the background does with Ctrl-C, it goes on to ignore. Only
    in the main thread signals can be handled; elsewhere they do what they always do.
    """

    def __init__(self):
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def watch(self) -> None:
        """Take the place of what handled these signals before."""
        self.received, self._process = None, os.getpid()
        if threading.current_thread() is threading.main_thread():
            heeded = [one for one in _TO_END if signal.getsignal(one) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._note) for number in heeded}

    def forget(self) -> None:
        """Let what handled the signals before handle them again, also the SIGTERM that came."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
        if self.received == signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)

    def raise_received(self) -> None:
        """Raise what ends the process, if a signal has come to any of all processes."""
        terminated, interrupted = distributed.total(*(self.received == one for one in _TO_END))
        if terminated:
            raise SystemExit(128 + signal.SIGTERM)
        if interrupted:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that reads images, made while we watch
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


_POSITION = (
    *("epoch", "phase", "step", "loss_sum", "correct", "count", "row", "rows", "is_best"),
    *("should_stop", "num_epochs", "micro_batches", "generators_before"),
)


def position_of(state: TrainingState) -> dict[str, object]:
    """A copy of how far the run has come, without weights: little enough for every step."""
    position = {name: getattr(state, name) for name in _POSITION}
    position |= {"row": dict(state.row), "rows": list(state.rows)}
    position["generators"] = generator_states(state.dataloaders.values())
    position["epoch_seconds"] = time.perf_counter() - state.epoch_began
    return position


def capture(state: TrainingState, position: dict[str, object]) -> dict[str, object]:
    """A copy of all that the run is made of: tensors on the CPU, numbers, texts, lists and dicts.

    Raises ParameterError, which says where it is, for anything else.
    """
    scaler = engine.accelerator().scaler
    changing = {
        "position": position,
        "model": engine.unwrapped(state.model).state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict() if state.scheduler else None,
        "scaler": scaler.state_dict() if scaler else None,
    }
    callbacks = [[name := _name(one), _plain(one.state_dict(), name)] for one in _with_state(state)]
    # The best weights are a copy already, which nobody changes.
    rest = {"run": state.run.id, "config": state.config}
    rest |= {"callbacks": callbacks, "best": state.best.state_dict()}
    return {**{name: _plain(value, name) for name, value in changing.items()}, **rest}


def go_on(state: TrainingState) -> dict[str, object] | None:
    """Put all but callbacks and generators where they were, if the run was begun before.

    Returns what was saved. Raises RunError where what is to be filled is not what it was.
    """
    saved = distributed.from_main(state.run.snapshot() if state.run else None)
    if saved is None:
        draw_apart()
        return None
    state.saves, content = saved
    if state.run:
        check_unchanged(state.run, content["config"], state.config)
    num_epochs, parts, position = state.num_epochs, state.micro_batches, content["position"]
    try:
        state.best.load_state_dict(content["best"])
        engine.unwrapped(state.model).load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        if state.scheduler is not None:
            state.scheduler.load_state_dict(content["scheduler"])
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise RunError(
            f"The run was begun with another network, optimizer or scheduler ({error}). "
            "Make them as they were then to continue it, or choose another run_name."
        ) from error
    if engine.accelerator().scaler and content["scaler"]:
        engine.accelerator().scaler.load_state_dict(content["scaler"])
    for name in _POSITION:
        setattr(state, name, position[name])
    if state.phase == "val" and not distributed.is_main():  # they add theirs at the end
        state.loss_sum, state.correct, state.count = 0.0, 0, 0
    state.generators_now = position["generators"]
    state.epoch_began = time.perf_counter() - position["epoch_seconds"]
    state.should_stop &= num_epochs <= state.num_epochs
    state.num_epochs, state.micro_batches = num_epochs, max(parts, state.micro_batches)
    if state.run:
        _announce(state)
    return content


def _announce(state: TrainingState) -> None:
    state.run.save_history(state.history)
    done = f"{state.epochs_done} of {state.num_epochs} epochs are done"
    print(f"{state.run.folder} {'is finished' if state.is_finished else 'goes on'}: {done}")


def go_on_with_callbacks(state: TrainingState, content: dict[str, object] | None) -> None:
    """Give every callback the state of its namesake. Raises RunError where they are others."""
    if content is None:
        return
    with_state = _with_state(state)
    now, then = sorted(map(_name, with_state)), sorted(name for name, _ in content["callbacks"])
    if now != then and distributed.is_main():
        raise RunError(
            f"{state.run.folder} holds a run that was begun with the callbacks {then}, not {now}. "
            "Give the old ones to continue it, or choose another run_name."
        )
    left = list(content["callbacks"])
    for callback in with_state:
        number = next(i for i, (name, _) in enumerate(left) if name == _name(callback))
        callback.load_state_dict(left.pop(number)[1])
    if not state.step:  # amid a phase it is for `batches`, which draws others again first
        set_generator_states(state.generators_now, state.dataloaders.values())


def _with_state(state: TrainingState) -> list[Callback]:
    return [one for one in state.callbacks if type(one).state_dict is not Callback.state_dict]


def _name(callback: Callback) -> str:
    return type(callback).__name__


def _plain(value: object, where: str) -> object:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _plain(inner, f"{where}.{name}") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        kind = tuple if isinstance(value, tuple) else list
        return kind(_plain(inner, f"{where}.{i}") for i, inner in enumerate(value))
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ParameterError(
        f"{where} is a {type(value).__name__}, so the run could not be continued after a "
        "disconnect. What state_dict() gives should be made of tensors and plain data."
    )


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
    others = [one for one in others if distributed.is_main() or not one.only_in_main_process]
    return others if run_dir is None else [*others, *(own[:1] or [Checkpointer()])]


def _is_apart(state: TrainingState) -> bool:
    """Whether processes are on their own: each validates its share, in as many steps as it has."""
    return state.phase == "val" and distributed.count() > 1


def _write(state: TrainingState, content: dict[str, object]) -> None:
    state.saves += 1
    storage = state.run.storage
    name = next_name(storage.last_whole)  # never over what counts if this fails
    if storage.write_in(name, lambda folder: write_snapshot(folder / name, state.saves, content)):
        storage.last_whole = name
