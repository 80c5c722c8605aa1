"""calibrate: what a run's model says of its validation images corrects how sure it is of others."""

import json
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from resnet_ft.errors import ParameterError
from resnet_ft.evaluation.calibration import (
    calibration_scores,
    coverage_at,
    cross_calibrated,
)
from resnet_ft.evaluation.predictions import Predictions, load_predictions
from resnet_ft.models.calibration import Calibration, strangeness
from resnet_ft.models.checkpoint import load_checkpoint, tensors_digest
from resnet_ft.training.run import Run

_FAMILIAR = 0.95  # of the validation images


def calibrate(
    run: Run,
    predictions: Predictions | Mapping[str, Predictions] | None = None,
    *,
    accuracy: float | None = None,
) -> Calibration:
    """Fit the temperature on predictions of the validation images, and put it into best.pt.

    `predictions` are by default those in the run's evaluation.csv. Those of "train" and "val", both
    with features, also give what is familiar. `accuracy`, such as 0.95, also gives a threshold of
    confidence (see `coverage_at`). What an earlier call found about the same weights, and this one
    does not look for, stays. calibration.json has the numbers; `Predictor` and `evaluate(...,
    calibrated=True)` use what best.pt holds. Raises ParameterError for predictions of other weights
    or without logits.
    """
    if predictions is None:
        predictions = load_predictions(run.folder / "evaluation.csv")
    splits = {"val": predictions} if isinstance(predictions, Predictions) else predictions
    val, checkpoint = splits["val"], load_checkpoint(run.best)
    weights = tensors_digest(checkpoint.state_dict)[:16]
    if val.logits is None or val.weights != weights:
        raise ParameterError(
            f"The predictions have no logits, or are not of the model in {run.best}. Evaluate that "
            "one: evaluate(load_checkpoint(run.best).load_into(), dataloader)."
        )
    if accuracy is not None and not 0 < accuracy <= 1:
        raise ParameterError(f"accuracy={accuracy} should be a share above 0, such as 0.95.")
    old = Calibration.of(checkpoint.calibration) if checkpoint.calibration else None
    old = old if old and old.weights == weights else None
    val = val.calibrated(1)  # as the model gives it, if it was calibrated before
    temperature, judged = cross_calibrated(val)
    accuracy = accuracy or (old.accuracy if old else None)
    means, strangest = fit_familiarity(splits.get("train"), val)
    if old and means is None:
        means, strangest = old.means, old.strangest
    found = Calibration(
        temperature,
        weights,
        images=len(val.table),
        before=calibration_scores(val),
        after=calibration_scores(judged),
        accuracy=accuracy,
        threshold=coverage_at(val.calibrated(temperature), accuracy)[0] if accuracy else None,
        means=means,
        strangest=strangest,
    )
    run.rewrite_best(replace(checkpoint, calibration=vars(found)).write)
    numbers = {**vars(found), "means": None if means is None else [*means.shape]}
    text = json.dumps(numbers, indent=2) + "\n"  # the means themselves are in best.pt
    run.write("calibration.json", lambda path: path.write_text(text, "utf-8"))
    return found


def fit_familiarity(
    train: Predictions | None, val: Predictions
) -> tuple[Tensor | None, float | None]:
    """The mean features of Train's classes, halves, and what 95% of Val are not stranger than.

    A Mahalanobis distance to the nearest class (Lee et al., NeurIPS 2018) of features of length 1,
    its covariance shrunk to a sphere, which makes it a cosine: that recognised strangers best. None
    where one of them has no features.
    """
    if train is None or train.features is None or val.features is None:
        return None, None
    units, labels = normalize(torch.tensor(train.features).float()), torch.tensor(train.labels)
    sums = torch.zeros(len(train.classes), units.shape[1]).index_add_(0, labels, units)
    means = normalize(sums[labels.unique()]).half()
    seen = strangeness(torch.tensor(val.features), means).clamp(0, 1)
    return means, float(seen.quantile(_FAMILIAR, interpolation="higher"))
