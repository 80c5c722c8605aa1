"""What is varied: options of `fine_tune`, augmentation, and Adam's epsilon."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from resnet_ft.training.callbacks import Callback
from resnet_ft.training.schedule import warmup_cosine
from resnet_ft.training.state import TrainingState


@dataclass(frozen=True)
class Variant:
    """How a run differs from today's defaults."""

    options: Mapping[str, object] = field(default_factory=dict)
    strength: str = "medium"
    epsilon: float | None = None

    @property
    def callbacks(self) -> list[Callback]:
        """What changes the optimizer in ways that `fine_tune` has no option for."""
        return [] if self.epsilon is None else [_Epsilon(self.epsilon)]


class _Epsilon(Callback):
    def __init__(self, epsilon: float):
        self.epsilon = epsilon

    def on_fit_begin(self, state: TrainingState) -> None:
        for group in state.optimizer.param_groups:
            group["eps"] = self.epsilon


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
    "strong, smoothing": Variant(_SMOOTHING, "strong"),
}
