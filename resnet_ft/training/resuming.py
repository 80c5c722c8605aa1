"""All that a run is made of as plain data, and a run that goes on from that as if nothing was."""

import time

import numpy as np
from torch import Tensor

from resnet_ft import engine, processes
from resnet_ft.errors import ParameterError, RunError
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.generators import draw_apart, generator_states, set_generator_states
from resnet_ft.training.starting import check_unchanged
from resnet_ft.training.state import TrainingState

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
    saved = processes.from_main(state.run.snapshot() if state.run else None)
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
    if state.phase == "val" and not processes.is_main():  # they add theirs at the end
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
    if now != then and processes.is_main():
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
