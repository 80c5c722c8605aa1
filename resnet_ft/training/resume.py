"""Resuming: what a run is made of, saved as plain data while it trains and when it is stopped."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import FrameType, NoneType
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from resnet_ft import distributed, engine, frontend
from resnet_ft.errors import ParameterError, RunError, RunInterrupted, TrainingError
from resnet_ft.reading import reading
from resnet_ft.training.callbacks import Callback, EarlyStop
from resnet_ft.training.rng import seed_by_rank, set_rng_states
from resnet_ft.training.run import Run, check_unchanged
from resnet_ft.training.state import TrainingState
from resnet_ft.training.storage import ResumeState

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Autosave(Callback):
    """Saves a resume state after every epoch, every few minutes, and when the run is stopped.

    `train_model` adds one to every run with a `run_dir`; hand in your own for other `minutes`. It
    copies weights, optimizer, callbacks, generators and progress, which a thread writes to
    last.0.pt and last.1.pt in turn. Ctrl-C and SIGTERM end the run after the present step, which is
    saved; a second Ctrl-C ends it at once. After an exception the last complete step is saved,
    unless something has changed since.

    A finished run keeps what more epochs need, five times the size of best.pt with AdamW; with
    `keep_resume_state=False` it keeps only the note that it is finished. Raises ParameterError for
    callbacks and schedulers whose state is more than plain data.
    """

    def __init__(self, minutes: float = 5.0, *, keep_resume_state: bool = True):
        if not minutes > 0:
            raise ParameterError(f"minutes={minutes} should be more than 0.")
        self.minutes = minutes
        self.keep_resume_state = keep_resume_state
        self._signals = _Signals()

    def on_fit_begin(self, state: TrainingState) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="resnet_ft-save")
        self._writing: Future[None] | None = None
        model = engine.unwrapped(state.model)
        self._tensors = [*model.parameters(), *model.buffers()]
        self._remember(state)
        if state.saves:
            self._is_new, self._saved_at = False, time.perf_counter()
            self._saved = self._progress
        else:
            self._save(state)
        self._signals.watch()

    def on_phase_begin(self, state: TrainingState) -> None:
        if _is_apart(state):  # the steps that follow cannot be saved before the epoch's end
            self._end_step(state, is_due=True)

    def on_step_begin(self, state: TrainingState) -> None:
        state.stop_signal = self._signals.received  # all processes learn of it in this step

    def on_step_end(self, state: TrainingState) -> None:
        if not _is_apart(state):
            is_due = time.perf_counter() - self._saved_at > 60 * self.minutes
            self._end_step(state, is_due=is_due, agreed=state.phase == "train")

    def on_phase_end(self, state: TrainingState) -> None:
        if state.phase == "val":  # until the epoch's end, schedulers and callbacks are mid-way
            self._is_new = False

    def on_epoch_end(self, state: TrainingState) -> None:
        self._end_step(state, is_due=True)

    def on_interrupt(self, state: TrainingState) -> None:
        diverged = isinstance(sys.exc_info()[1], TrainingError)  # a loss of nan, for example
        try:
            state.check_unread_loss()
        except TrainingError:
            diverged = True
        if self._is_new and self._version == self._present_version() and not diverged:
            self._save(state)
        if state.run is not None:
            where = "epoch {epoch}, {phase} step {step}".format(**self._saved)
            said = f"{state.run.folder}: interrupted; saved at {where}. Run it again to resume."
            error = sys.exc_info()[1]
            if isinstance(error, RunInterrupted):
                error.args = (said,)
            if not isinstance(error, RunInterrupted) or not frontend.is_live():
                print(said)  # a live notebook shows it as the error

    def on_fit_end(self, state: TrainingState) -> None:
        try:
            self._raise_failed_save(wait=True)
            self._thread.shutdown()
            if state.run is not None:
                state.run.storage.bring_home()
                if state.is_finished:
                    with suppress(OSError):  # it only frees space
                        state.run.storage.empty_older(state.saves)
        finally:
            self._signals.forget()

    def _end_step(self, state: TrainingState, *, is_due: bool, agreed: bool = False) -> None:
        """After a complete step: save if it is time to, and end the run if a signal asks for it."""
        self._remember(state)
        if is_due:
            self._save(state)
        received = self._signals.received
        if distributed.count() > 1:
            came = (one for one in _SIGNALS if distributed.any_of_all(received == one))
            received = state.stop_signal if agreed else next(came, 0)
        if received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if received:
            raise RunInterrupted

    def _remember(self, state: TrainingState) -> None:
        self._progress, self._version = state.state_dict(), self._present_version()
        self._is_new = True

    def _present_version(self) -> int:
        """A number that changes with every in-place change of a weight or a buffer."""
        return sum(tensor._version for tensor in self._tensors)

    def _save(self, state: TrainingState) -> None:
        """Copy everything now and have it written; a copy that still waits is dropped."""
        state.check_unread_loss()
        if state.run is not None:  # as in the main process
            self._raise_failed_save()
            sums = {name: float(value) for name, value in self._progress["sums"].items()}
            progress = {**self._progress, "sums": sums}
            content = _capture(state, progress, state.run, self.keep_resume_state)
            self._writing = self._thread.submit(_write, state, content, state.run)
        self._is_new, self._saved_at = False, time.perf_counter()
        self._saved = self._progress

    def _raise_failed_save(self, *, wait: bool = False) -> None:
        """Raise the error of the last save; one that has not begun is dropped, or waited for."""
        if self._writing is None or (not wait and self._writing.cancel()):
            return
        if wait or self._writing.done():
            self._writing.result()


def with_autosave(callbacks: Sequence[Callback], *, has_run: bool) -> list[Callback]:
    """The callbacks that this process needs, with an Autosave at the end if there is a run."""
    own = [callback for callback in callbacks if isinstance(callback, Autosave)]
    if own and not has_run:
        raise ParameterError("An Autosave writes into the folder of a run: give run_dir as well.")
    others = [one for one in callbacks if not isinstance(one, Autosave)]
    others = [one for one in others if distributed.is_main() or not one.only_in_main_process]
    return [*others, *(own[:1] or [Autosave()])] if has_run else others


def _is_apart(state: TrainingState) -> bool:
    """Whether processes work on their own: each validates its share, in its own number of steps."""
    return state.phase == "val" and distributed.count() > 1


def _write(state: TrainingState, content: ResumeState, run: Run) -> None:
    state.saves += 1
    run.storage.write_resume_state(state.saves, content)


class _Signals:
    """Notes Ctrl-C and SIGTERM from `watch` until `forget`; a second Ctrl-C interrupts at once.

    What the process ignores, as one in the background does with Ctrl-C, it continues to ignore.
    Only the main thread can handle signals; elsewhere they do what they always do.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def watch(self) -> None:
        """Take the place of the present handlers."""
        self.received, self._process = 0, os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)

    def forget(self) -> None:
        """Restore the previous handlers, and let them handle a SIGTERM that came meanwhile."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
        if self.received == signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that reads images, forked while we watch
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.received == number == signal.SIGINT:
            raise RunInterrupted
        self.received = number


def _capture(
    state: TrainingState, progress: dict[str, Any], run: Run, keep_resume_state: bool
) -> ResumeState:
    """A copy of all that the run is made of: tensors on the CPU, numbers, texts, lists and dicts.

    A finished run has its best weights in best.pt; to find it finished, no others are needed.
    Raises ParameterError, naming the place, for anything else.
    """
    scaler = engine.accelerator().scaler
    states = [(_name(one), one.state_dict()) for one in _with_state(state)]
    changing: dict[str, Any] = {"progress": progress}
    best = state.best.state_dict()  # a copy already, which nobody changes
    is_over = state.is_finished and run.storage.has_home(run.best.name)
    if is_over:
        best = {**best, "weights": {}}
    if is_over and not keep_resume_state:
        states = [(name, one) for name, one in states if not _holds_tensors(one)]
    else:
        changing |= {
            "model": engine.unwrapped(state.model).state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "scheduler": state.scheduler.state_dict() if state.scheduler else None,
            "scaler": scaler.state_dict() if scaler else None,
        }
    callbacks = [[name, _plain(one, name)] for name, one in states]
    rest = {"run": run.id, "config": state.config, "best": best}
    plain = {name: _plain(value, name) for name, value in changing.items()}
    return {**plain, **rest, "callbacks": callbacks}


def _holds_tensors(value: object) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(map(_holds_tensors, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor)


_OTHERS = (
    "The run began with another model, optimizer, scheduler or metric ({error}). To resume it, "
    "make them as they were; otherwise choose another run_dir."
)
_DAMAGED = "The resume state", RunError, "Put the run's own files back, or choose another run_dir."


@reading(*_DAMAGED)
def load_resume_state(state: TrainingState) -> dict[str, Any] | None:
    """Restore all but callbacks and generators, if the run has a resume state; return it.

    Raises RunError where model, optimizer or scheduler are not those of the run.
    """
    saved = distributed.from_main(_read(state))
    if saved is None:
        seed_by_rank()
        return None
    state.saves, content = saved[0], _in_present_form(saved[1])
    if state.run and state.config is not None:  # config.json may have been edited since
        check_unchanged(state.run, content["config"], state.config, warn=False)
    num_epochs, micro_batches = state.num_epochs, state.micro_batches
    try:
        state.best.load_state_dict(content["best"])
        if "model" in content:  # else only the note is left that the run is finished
            engine.unwrapped(state.model).load_state_dict(content["model"])
            groups = state.optimizer.state_dict()["param_groups"]
            _take_kernels(content["optimizer"], groups)
            state.optimizer.load_state_dict(content["optimizer"])
            _check_optimizer(state.optimizer, groups)
            if state.scheduler is not None:
                present = state.scheduler.state_dict()
                state.scheduler.load_state_dict(_of_types(content["scheduler"], present))
        state.load_state_dict(content["progress"])
        for generators in filter(None, (state.rng, state.rng_before_phase)):  # set again later
            set_rng_states(generators, state.dataloaders.values())
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise RunError(_OTHERS.format(error=error)) from error
    if engine.accelerator().scaler and content.get("scaler"):
        engine.accelerator().scaler.load_state_dict(content["scaler"])
    if state.phase == "val" and not distributed.is_main():  # each adds its own at the end
        state.begin_phase()
    state.should_stop &= num_epochs <= state.num_epochs
    state.num_epochs, state.micro_batches = num_epochs, max(micro_batches, state.micro_batches)
    _check_kept(state, content)
    if state.run:
        state.run.save_history(state.history)
    return content


def _read(state: TrainingState) -> tuple[int, ResumeState] | None:
    """The resume state of the run, with the best weights, which a finished one has in best.pt."""
    if state.run is None or (saved := state.run.resume_state()) is None:
        return None
    content: Any = saved[1]
    try:
        return saved[0], {**content, "best": state.best.completed(content["best"])}
    except RuntimeError as error:
        raise RunError(_OTHERS.format(error=error)) from error


def _check_kept(state: TrainingState, content: dict[str, Any]) -> None:
    """Raise RunError where a finished run should get epochs, and has not kept what they need."""
    if "model" not in content and not state.is_finished and state.run is not None:
        raise RunError(
            f"{state.run.folder} is finished, after {state.epochs_done} epochs, and has not kept "
            "what more of them would need (keep_resume_state=False). Train on from its model in a "
            f'new run: another run_dir, with weights="{state.run.best}".'
        )


def _take_kernels(saved: dict[str, Any], present: list[dict[str, Any]]) -> None:
    """Let a saved optimizer compute as suits this device: it may be another than that of then."""
    for group, now in zip(saved["param_groups"], present, strict=False):
        group.update({name: now[name] for name in ("foreach", "fused") if name in now})


def _check_optimizer(optimizer: Optimizer, before: list[dict[str, Any]]) -> None:
    """Raise ValueError where what was loaded has not the form of what was there `before`."""
    for old, new in zip(before, optimizer.param_groups, strict=True):
        for name in old.keys() - {"params"}:
            kinds = {float if isinstance(one[name], int) else type(one[name]) for one in (old, new)}
            if len(kinds - {NoneType}) > 1:
                raise ValueError(f"the optimizer's {name} is {new[name]!r}")
    fits: dict[str, list[bool]] = {}  # whether a tensor has the shape of its parameter
    for parameter, kept in optimizer.state.items():
        for name, one in kept.items():
            fits.setdefault(name, []).append(getattr(one, "shape", None) == parameter.shape)
    if wrong := [name for name, each in fits.items() if len(each) / 2 < sum(each) < len(each)]:
        raise ValueError(f"the optimizer's {', '.join(wrong)} have other shapes than the weights")


@reading(*_DAMAGED)
def resume_callbacks(state: TrainingState, content: dict[str, Any] | None) -> None:
    """Give every callback the state of its namesake, and all generators theirs.

    Raises RunError where the callbacks are not those of the run.
    """
    if content is None:
        return
    with_state = _with_state(state)
    now, then = sorted(map(_name, with_state)), sorted(name for name, _ in content["callbacks"])
    if "model" not in content:  # those that hold tensors are not there
        with_state = [one for one in with_state if _name(one) in then]
    elif now != then and state.run is not None:
        raise RunError(
            f"{state.run.folder} holds a run that began with the callbacks {then}, not {now}. "
            "To resume it, give the old ones; otherwise choose another run_dir."
        )
    left = list(content["callbacks"])
    for callback in with_state:
        number = next(i for i, (name, _) in enumerate(left) if name == _name(callback))
        callback.load_state_dict(left.pop(number)[1])
        if isinstance(callback, EarlyStop) and callback.waits_again:
            state.should_stop = False  # it is more patient now than when it ended the run
            _check_kept(state, content)
    if not state.step and state.rng:  # mid-phase, `remaining_batches` draws the earlier ones first
        set_rng_states(state.rng, state.dataloaders.values())


def announce(state: TrainingState, content: dict[str, Any] | None) -> None:
    """Say how far a resumed run has come."""
    if content is not None and state.run:
        total = max(state.num_epochs, state.epochs_done)
        done = f"{state.epochs_done} of {total} epochs are done"
        print(f"{state.run.folder} {'is finished' if state.is_finished else 'resumes'}: {done}")


def _of_types(saved: Any, present: Any) -> Any:
    """Saved plain data with the types of what it replaces: a resume state holds no Counter."""
    if isinstance(saved, dict) and isinstance(present, dict):
        inner = {name: _of_types(one, present.get(name)) for name, one in saved.items()}
        return Counter(inner) if isinstance(present, Counter) else inner
    if isinstance(saved, list) and isinstance(present, list) and len(saved) == len(present):
        return [_of_types(*pair) for pair in zip(saved, present, strict=True)]
    return saved


def _in_present_form(content: ResumeState) -> dict[str, Any]:
    """A resume state as it is written now; the first form had a "position" in place of progress."""
    saved: dict[str, Any] = dict(content)
    if "position" not in saved:
        progress = saved["progress"]
        weighed = {"weight": progress["samples"], **progress["sums"]}  # some have no weight yet
        return {**saved, "progress": {**progress, "sums": weighed}}
    position = saved.pop("position")
    names = {"count": "samples", "generators": "rng", "generators_before": "rng_before_phase"}
    progress = {names.get(name, name): value for name, value in position.items()}
    sums = {"loss": position["loss_sum"], "accuracy": position["correct"]}
    progress["sums"] = {**sums, "weight": position["count"]}
    by_step = [state for name, state in saved["callbacks"] if name == "StepScheduler"]
    others = [[name, state] for name, state in saved["callbacks"] if name != "StepScheduler"]
    scheduler = by_step[0] if by_step else saved["scheduler"]
    return {**saved, "progress": progress, "callbacks": others, "scheduler": scheduler}


def _with_state(state: TrainingState) -> list[Callback]:
    own = [one for one in state.callbacks if isinstance(one, Callback)]
    return [one for one in own if type(one).state_dict is not Callback.state_dict]


def _name(callback: Callback) -> str:
    return type(callback).__name__


def _plain(value: object, where: str) -> object:
    """A copy of plain data and tensors, those on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _plain(inner, f"{where}.{name}") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        copies = [_plain(inner, f"{where}.{i}") for i, inner in enumerate(value)]
        return tuple(copies) if isinstance(value, tuple) else copies
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ParameterError(
        f"{where} is a {type(value).__name__}, so the run could not be resumed after a disconnect. "
        "What state_dict() returns should be made of tensors and plain data."
    )
