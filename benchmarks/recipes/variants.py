"""What is varied: options of `fine_tune`, augmentation, Adam's epsilon, the rate of the head."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from resnet_ft.models.build import head_of
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.schedule import warmup_cosine
from resnet_ft.training.state import TrainingState


@dataclass(frozen=True)
class Variant:
    """How a run differs from today's defaults."""

    options: Mapping[str, object] = field(default_factory=dict)
    strength: str = "medium"
    epsilon: float | None = None
    head_rate: float = 1.0  # as a share of what it is otherwise

    @property
    def callbacks(self) -> list[Callback]:
        """What changes the optimizer in ways that `fine_tune` has no option for."""
        found: list[Callback] = [] if self.epsilon is None else [_Epsilon(self.epsilon)]
        return found + ([] if self.head_rate == 1 else [_HeadRate(self.head_rate)])


class _Epsilon(Callback):
    def __init__(self, epsilon: float):
        self.epsilon = epsilon

    def on_fit_begin(self, state: TrainingState) -> None:
        for group in state.optimizer.param_groups:
            group["eps"] = self.epsilon


class _HeadRate(Callback):
    """The head takes that share of each step; that of Adam is proportional to the rate."""

    def __init__(self, share: float):
        self.share = share

    def on_before_optimizer_step(self, state: TrainingState) -> None:
        self._before = [one.detach().clone() for one in head_of(state.model)[1].parameters()]

    def on_step_end(self, state: TrainingState) -> None:
        if state.phase == "train":
            with torch.no_grad():
                after = head_of(state.model)[1].parameters()
                for one, before in zip(after, self._before, strict=True):
                    one.lerp_(before, 1 - self.share)


_SMOOTHING = {"label_smoothing": 0.1}
_WARMUP = {"schedule": partial(warmup_cosine, warmup=0.5)}  # over half of the run

VARIANTS = {
    "today": Variant(),
    "smoothing": Variant(_SMOOTHING),
    "warmup": Variant(_WARMUP),
    "warmup, smoothing": Variant(_WARMUP | _SMOOTHING),
    "light": Variant(strength="light"),
    "rate / 2": Variant({"learning_rate": 1.5e-4}),
    "light, smoothing": Variant(_SMOOTHING, "light"),
    "rate / 3": Variant({"learning_rate": 1e-4}),
    "rate x 2, smoothing": Variant({"learning_rate": 6e-4} | _SMOOTHING),
    "light, warmup, smoothing": Variant(_WARMUP | _SMOOTHING, "light"),
    "epsilon 1e-5": Variant(epsilon=1e-5),
    "epsilon 1e-3": Variant(epsilon=1e-3),
    "head's rate / 10": Variant(head_rate=0.1),
    "rate / 3, warmup": Variant(_WARMUP | {"learning_rate": 1e-4}),
    "epsilon 1e-3, smoothing": Variant(_SMOOTHING, epsilon=1e-3),
    "epsilon 1e-3, warmup": Variant(_WARMUP, epsilon=1e-3),
    "strong, smoothing": Variant(_SMOOTHING, "strong"),
}
