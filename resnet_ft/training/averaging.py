"""An average of the weights over the steps of training: often better than the last weights."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from resnet_ft import engine
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
    """Scores an exponential moving average of the weights, and keeps it where it is the best.

    After each training step: average = decay * average + (1 - decay) * weights, beginning with the
    weights after the first. Buffers, such as BatchNorm's statistics, are the model's own. The
    history gets the columns `ema_val_loss` and `ema_val_accuracy`; in a tie the epoch's own weights
    are kept.

    By default decay is 1 - 10 / (all training steps), so that the average spans about a tenth of
    the run, but at most 0.9999 (0.999 where loaders do not know their length), and after t steps
    (1 + t) / (10 + t), TensorFlow's rule, which suits a run that is cut short. Averaging goes back
    to Polyak and Juditsky (1992, SIAM J. Control Optim. 30); Morales-Brotons et al. (2024,
    arXiv:2411.18704) study its effect.
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
        scores = {name: state.row[f"ema_{name}"] for name in ("val_loss", "val_accuracy")}
        state.is_best |= state.best.update({**state.row, **scores}, self.average)

    def state_dict(self) -> dict[str, Any]:
        weights = {f"module.{name}": one for name, one in self.average.state_dict().items()}
        return {"n_averaged": torch.tensor(self._steps), **weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        weights = {name.removeprefix("module."): one for name, one in state.items()}
        self._steps = int(weights.pop("n_averaged"))
        self.average.load_state_dict(weights)
