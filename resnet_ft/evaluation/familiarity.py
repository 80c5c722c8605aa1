"""Whether an image is like those that a model was trained on, by its features.

A Mahalanobis distance to the nearest class (Lee et al., NeurIPS 2018) of features of length 1, its
covariance shrunk to a sphere, which makes it a cosine: that recognised strangers best.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from resnet_ft.evaluation.predictions import Predictions
from resnet_ft.reading import check_finite

_FAMILIAR = 0.95  # of the validation images


@dataclass(frozen=True)
class Familiarity:
    """The mean features of each class of training images: `means` (C, D), of length 1, halves.

    An image is unfamiliar if its `strangeness` is above `threshold`.
    """

    means: Tensor
    threshold: float

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Familiarity":
        """What a checkpoint holds. Raises ValueError for anything else."""
        found = cls(**content)
        check_finite({"means": found.means})
        if found.means.ndim != 2 or not 0 <= found.threshold <= 1:
            raise ValueError(f"means {tuple(found.means.shape)}, threshold {found.threshold}")
        return found


def strangeness(features: Tensor, means: Tensor) -> Tensor:
    """How unlike every class features (N, D) are: (N,), from 0, as its mean, to 1, the opposite."""
    return (1 - (normalize(features.float()) @ means.float().T).amax(dim=1)) / 2


def fit_familiarity(train: Predictions, val: Predictions) -> Familiarity | None:
    """The means of Train, and the threshold below which 95% of Val are; None without features."""
    if train.features is None or val.features is None:
        return None
    units, labels = normalize(torch.tensor(train.features).float()), torch.tensor(train.labels)
    sums = torch.zeros(len(train.classes), units.shape[1]).index_add_(0, labels, units)
    means = normalize(sums[labels.unique()]).half()
    seen = strangeness(torch.tensor(val.features), means).clamp(0, 1)
    return Familiarity(means, float(seen.quantile(_FAMILIAR, interpolation="higher")))
