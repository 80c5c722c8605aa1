"""Whether an image is like those that a model was trained on, by its features.

A Mahalanobis distance to the nearest class (Lee et al., NeurIPS 2018) of features of length 1, its
covariance shrunk to a sphere, which makes it a cosine: that recognised strangers best.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from resnet_ft.evaluation.predictions import Predictions
from resnet_ft.models.calibration import strangeness

_FAMILIAR = 0.95  # of the validation images


def fit_familiarity(
    train: Predictions | None, val: Predictions
) -> tuple[Tensor | None, float | None]:
    """The mean features of Train's classes, halves, and what 95% of Val are not stranger than.

    None where one of them has no features.
    """
    if train is None or train.features is None or val.features is None:
        return None, None
    units, labels = normalize(torch.tensor(train.features).float()), torch.tensor(train.labels)
    sums = torch.zeros(len(train.classes), units.shape[1]).index_add_(0, labels, units)
    means = normalize(sums[labels.unique()]).half()
    seen = strangeness(torch.tensor(val.features), means).clamp(0, 1)
    return means, float(seen.quantile(_FAMILIAR, interpolation="higher"))
