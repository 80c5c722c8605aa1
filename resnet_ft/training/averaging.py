"""Averages of the weights: of the last steps, and of where a run began and where it ended."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from resnet_ft import distributed, engine
from resnet_ft.errors import ParameterError
from resnet_ft.evaluation.predictions import predict_logits
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.criterion import adds_up, weight_of
from resnet_ft.training.state import Row, TrainingState, most_likely

_SHARES = (0.25, 0.5, 0.75)  # of the way from where a run began to where it ended


def validation_scores(
    model: nn.Module, loader: DataLoader, criterion: Callable
) -> dict[str, float]:
    """`val_loss` and `val_accuracy` over all samples; random generators stay as they are."""
    with torch.random.fork_rng(devices=[]):  # a loader draws a number for its workers
        logits, labels = predict_logits(model, loader)
    # Per batch, as train_model does: a criterion of one's own may not be a mean over samples.
    size = getattr(loader.batch_sampler, "batch_size", len(labels))
    device, loss_sum, weights = engine.device(), 0.0, 0.0
    with torch.inference_mode():
        for of_batch, true in zip(logits.split(size), labels.split(size), strict=True):
            if weight := weight_of(criterion, true):
                loss = criterion(of_batch.to(device), true.to(device)).item()
                loss_sum += loss if adds_up(criterion) else loss * weight
                weights += weight
    correct = (logits.argmax(dim=1) == most_likely(labels)).sum().item()
    return {"val_loss": loss_sum / weights, "val_accuracy": correct / len(labels)}


class WeightAverage(Callback):
    """Scores averages of the weights, and keeps them where they are the best.

    After each training step: average = decay * average + (1 - decay) * weights, beginning with the
    weights after the first. Buffers, such as BatchNorm's statistics, are the model's own. The
    history gets the columns `ema_val_loss` and `ema_val_accuracy`; in a tie the epoch's own weights
    are kept.

    By default decay is 1 - 10 / (all training steps), so that the average spans about a tenth of
    the run, but at most 0.9999 (0.999 where loaders do not know their length), and after t steps
    (1 + t) / (10 + t), TensorFlow's rule, which suits a run that is cut short. Averaging goes back
    to Polyak and Juditsky (1992, SIAM J. Control Optim. 30); Morales-Brotons et al. (2024,
    arXiv:2411.18704) study its effect.

    Where the run began with a model that was scored before (`first_row`, as after `fit_head`), the
    end of the run also scores the weights a quarter, half and three quarters of the way from that
    model to the average (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
    Those of the lowest loss get the columns `between_val_loss`, `between_val_accuracy` and
    `between_share`. Of the best so far, that first model and these, the run then keeps the lowest
    validation loss, so it never ends with a higher one than it began with. Callbacks that may end
    the run, such as `EarlyStop`, come before this one.
    """

    def __init__(self, decay: float | None = None):
        if decay is not None and not 0 <= decay < 1:
            raise ParameterError(f"decay={decay} should be None or at least 0 and less than 1.")
        self.decay = decay

    @property
    def last_validation(self) -> float:
        """How many times as long as the others the last validation takes, with what follows."""
        return 1.0 if self._start is None else (2 + len(_SHARES)) / 2  # beside model and average

    def on_fit_begin(self, state: TrainingState) -> None:
        self._longest = 0.999
        if state.steps_per_epoch is not None:
            steps = state.num_epochs * state.steps_per_epoch["train"]
            self._longest = min(0.9999, max(0.0, 1 - 10 / max(1, steps)))
        self.average = copy.deepcopy(engine.unwrapped(state.model)).to(engine.device())
        self._steps = 0  # torch's AveragedModel counts on the device, and waits for it
        is_scored = bool(state.rows) and not state.epochs_done
        self._start = copy.deepcopy(self.average.state_dict()) if is_scored else None

    @torch.no_grad()
    def on_step_end(self, state: TrainingState) -> None:
        if state.phase != "train":
            return
        done, model = self._steps, engine.unwrapped(state.model)
        decay = min(self._longest, (1 + done) / (10 + done)) if self.decay is None else self.decay
        averages: list[Tensor] = list(self.average.parameters())
        weights: list[Tensor] = list(model.parameters())
        if not done:
            torch._foreach_copy_(averages, weights)
        elif state.skipped is None:
            get_ema_multi_avg_fn(decay)(averages, weights, done)
        else:  # known to the device alone
            share = torch.where(state.skipped, 0.0, 1 - decay)
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight, share)
        self._steps += 1

    def on_phase_end(self, state: TrainingState) -> None:
        if state.phase == "val":
            val, average = state.dataloaders["val"], self.average
            for own, buffer in zip(
                average.buffers(), engine.unwrapped(state.model).buffers(), strict=True
            ):
                own.copy_(buffer)
            scores = validation_scores(average, val, state.criterion)
            state.row |= {f"ema_{name}": score for name, score in scores.items()}

    def on_epoch_end(self, state: TrainingState) -> None:
        state.is_best |= state.best.update(_row_of("ema", state.row), self.average)
        if self._start is not None and distributed.any_of_all(state.is_finished):
            self._end_between(self._start, state)

    def _end_between(self, start: dict[str, Tensor], state: TrainingState) -> None:
        """Score points on the way from `start` to the average; keep the lowest loss of all."""
        found: list[tuple[dict[str, float], nn.Module]] = []
        for share in _SHARES:
            model = _between(start, self.average, share)
            scores = validation_scores(model, state.dataloaders["val"], state.criterion)
            found.append(({**scores, "share": share}, model))
        best, model = min(found, key=lambda one: one[0]["val_loss"])
        state.row |= {f"between_{name}": number for name, number in best.items()}
        if state.run:
            state.run.save_history(state.history)
        first = _with_weights(self.average, start)
        state.is_best |= state.best.update_by_loss(state.rows[0], first)
        state.is_best |= state.best.update_by_loss(_row_of("between", state.row), model)

    def state_dict(self) -> dict[str, Any]:
        weights = {f"module.{name}": one for name, one in self.average.state_dict().items()}
        start = {f"start.{name}": one for name, one in (self._start or {}).items()}
        return {"n_averaged": torch.tensor(self._steps), **weights, **start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        weights, start = (
            {name.removeprefix(part): one for name, one in state.items() if name.startswith(part)}
            for part in ("module.", "start.")
        )
        self._steps = int(state["n_averaged"])
        self.average.load_state_dict(weights)
        device = engine.device()
        self._start = {name: one.to(device) for name, one in start.items()} or None


def _row_of(prefix: str, row: Row) -> Row:
    """A row of the history as that of the weights whose columns begin with `prefix`."""
    return {**row, **{name: row[f"{prefix}_{name}"] for name in ("val_loss", "val_accuracy")}}


def _between(start: dict[str, Tensor], end: nn.Module, share: float) -> nn.Module:
    """A copy of `end` that share of the way from `start`, BatchNorm's statistics included."""
    between = {
        name: torch.lerp(start[name], one, share) if one.is_floating_point() else one
        for name, one in end.state_dict().items()
    }
    return _with_weights(end, between)


def _with_weights(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    copied = copy.deepcopy(model)
    copied.load_state_dict(weights)
    return copied
