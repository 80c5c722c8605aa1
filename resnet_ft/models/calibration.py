"""What corrects a model's confidence and flags its answers: `calibrate` finds it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from resnet_ft.errors import CheckpointError
from resnet_ft.reading import reading


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found out about a model, from `images` validation images.

    Logits are divided by `temperature`. Answers whose confidence is then below `threshold` are
    unsure; the others reach `accuracy`. Images whose `strangeness` from the `means` of classes
    (C, D) is above `strangest` are unfamiliar. `before` and `after` are `calibration_scores`, the
    latter out of sample. `weights` is a digest of the weights that all of this is about.
    """

    temperature: float
    weights: str
    images: int
    before: dict[str, float]
    after: dict[str, float]
    accuracy: float | None = None
    threshold: float | None = None
    means: Tensor | None = None
    strangest: float | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Calibration":
        """The calibration that a checkpoint holds. Raises CheckpointError for anything else."""
        with reading("The calibration", CheckpointError, "Call calibrate(run) again."):
            found = cls(**content)
            limits, means = (found.threshold or 0.0, found.strangest or 0.0), found.means
            if not 0 < found.temperature < np.inf or not 0 <= min(limits) <= max(limits) <= 1:
                raise ValueError(f"its numbers are {found.temperature}, {limits}")
            if (means is None) != (found.strangest is None):
                raise ValueError("it has either means or a limit for them")
            if means is not None and (means.ndim != 2 or not means.isfinite().all()):
                raise ValueError("its means are no table of numbers")
            return found

    def __str__(self) -> str:
        before, after = self.before, self.after
        return (
            f"temperature {self.temperature:.2f}: log loss {before['log_loss']:.3f} to "
            f"{after['log_loss']:.3f}, calibration error {before['ece']:.1%} to {after['ece']:.1%} "
            f"(perfect confidence: up to {after['band']:.1%} on {self.images} images)"
        )


def strangeness(features: Tensor, means: Tensor) -> Tensor:
    """How unlike all means (C, D) features (N, D) are: (N,), from 0 to 1, for the opposite."""
    return (1 - (normalize(features.float()) @ means.float().T).amax(dim=1)) / 2
