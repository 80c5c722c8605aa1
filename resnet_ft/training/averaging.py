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
from resnet_ft.training.state import TrainingState, most_likely


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
    last epoch also scores the weights halfway between that model and the average: the columns
    `halfway_val_loss` and `halfway_val_accuracy`. They forget less (Wortsman et al., "Robust
    fine-tuning of zero-shot models", CVPR 2022). A run that `EarlyStop` ends has none.
    """

    def __init__(self, decay: float | None = None):
        if decay is not None and not 0 <= decay < 1:
            raise ParameterError(f"decay={decay} should be None or at least 0 and less than 1.")
        self.decay = decay

    def on_fit_begin(self, state: TrainingState) -> None:
        self._longest = 0.999
        if state.steps_per_epoch is not None:
            steps = state.num_epochs * state.steps_per_epoch["train"]
            self._longest = min(0.9999, max(0.0, 1 - 10 / max(1, steps)))
        self.average = copy.deepcopy(engine.unwrapped(state.model)).to(engine.device())
        self._steps = 0  # torch's AveragedModel counts on the device, and waits for it
        is_scored = bool(state.rows) and not state.epochs_done
        self._start = copy.deepcopy(self.average.state_dict()) if is_scored else None
        self._scored: dict[str, nn.Module] = {}  # of the present epoch

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
            scored = {"ema": average}
            is_last = state.epoch >= state.num_epochs or state.should_stop
            if self._start is not None and distributed.any_of_all(is_last):
                scored["halfway"] = _halfway(self._start, average)
            self._scored = scored
            for prefix, one in scored.items():
                scores = validation_scores(one, val, state.criterion)
                state.row |= {f"{prefix}_{name}": score for name, score in scores.items()}

    def on_epoch_end(self, state: TrainingState) -> None:
        for prefix, one in self._scored.items():
            scores = {name: state.row[f"{prefix}_{name}"] for name in ("val_loss", "val_accuracy")}
            state.is_best |= state.best.update({**state.row, **scores}, one)
        self._scored = {}

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


def _halfway(start: dict[str, Tensor], model: nn.Module) -> nn.Module:
    """A copy of the model with weights halfway between `start` and its own; buffers are its own."""
    between = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in between.named_parameters():
            weight.lerp_(start[name], 0.5)
    return between
