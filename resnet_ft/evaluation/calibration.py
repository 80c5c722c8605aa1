"""How far confidence can be trusted: how wrong it is, and a temperature that corrects it.

Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from sklearn.model_selection import KFold
from torch import Tensor
from torch.nn.functional import cross_entropy

from resnet_ft.evaluation.predictions import Predictions
from resnet_ft.evaluation.scores import wilson_interval

_TEMPERATURES = 0.25, 10.0  # where all images are predicted right, the best one is 0
_FOLDS = 10
_BINS, _IN_A_BIN = 10, 15  # at most so many bins, of at least so many images
_SIMULATED = 1000


def fit_temperature(predictions: Predictions) -> float:
    """The temperature of the lowest log loss, from 0.25 to 10, on images not trained on."""
    known = predictions.calibrated(1)  # which needs logits
    return _fit(torch.tensor(known.logits), torch.tensor(known.labels))


def _fit(logits: Tensor, labels: Tensor) -> float:
    logits = logits.double()
    found = minimize_scalar(
        lambda log_temperature: cross_entropy(logits / np.exp(log_temperature), labels).item(),
        bounds=np.log(_TEMPERATURES),
        method="bounded",
    )
    return float(np.exp(found.x))


def cross_calibrated(predictions: Predictions) -> tuple[float, Predictions]:
    """The temperature for these images, and what it does to images that it has not seen.

    That is, the temperature of an image comes from nine tenths of the images. Where the calibration
    error lies within the band (see `calibration_scores`), nothing speaks against the confidence as
    it is; then, and where a temperature does not lower the loss of such images, it is 1.
    """
    scores, logits = calibration_scores(predictions), predictions.logits
    if scores["ece"] <= scores["band"] or len(predictions.table) < _FOLDS or logits is None:
        return 1.0, predictions
    scaled, labels = np.empty_like(logits), torch.tensor(predictions.labels)
    for others, fold in KFold(_FOLDS, shuffle=True, random_state=0).split(logits):
        scaled[fold] = logits[fold] / _fit(torch.tensor(logits[others]), labels[others])
    judged = replace(replace(predictions, logits=scaled).calibrated(1), logits=logits)
    if judged.table["loss"].mean() >= scores["log_loss"]:
        return 1.0, predictions
    return fit_temperature(predictions), judged


def calibration_scores(predictions: Predictions) -> dict[str, float]:
    """How far the confidence is from the truth.

    `log_loss` (nats); `brier`, the squared distance of the C probabilities from the truth, 0 to 2
    (Brier, 1950); `ece`, the expected calibration error: the mean distance of confidence and
    accuracy in bins of equally many images (10; fewer where these had less than 15); `band`, below
    which 95% of perfectly calibrated models would be, with this confidence on as many images
    (simulated); `overconfidence`, the mean confidence less the accuracy.
    """
    table, (bins, simulated) = predictions.table, _reliability(predictions)
    said, shares = predictions.probabilities, bins["images"] / len(table)
    of_label, squares = said[np.arange(len(said)), predictions.labels], (said**2).sum(axis=1)
    errors = np.abs(simulated - bins["confidence"].to_numpy()) @ shares
    return {
        "log_loss": float(table["loss"].mean()),
        "brier": float((squares - 2 * of_label + 1).mean()),
        "ece": float((bins["confidence"] - bins["accuracy"]).abs() @ shares),
        "band": float(np.quantile(errors, 0.95)),
        "overconfidence": float(table["confidence"].mean() - predictions.accuracy),
    }


def reliability(predictions: Predictions) -> pd.DataFrame:
    """A row for each bin of equally many images, from the least to the most confident ones.

    `confidence` and `accuracy` are means; in `from` to `to` the accuracy of a perfectly calibrated
    model would lie, 95 times in 100; `images` is their number.
    """
    return _reliability(predictions)[0]


def _reliability(predictions: Predictions) -> tuple[pd.DataFrame, np.ndarray]:
    """Also the accuracies (models, bins) of simulated models that are perfectly calibrated."""
    ordered = predictions.table.sort_values("confidence", kind="stable")
    confidence, right = ordered["confidence"].to_numpy(), ordered["predicted"] == ordered["label"]
    parts = np.array_split(right, np.clip(len(right) // _IN_A_BIN, 1, _BINS))
    sizes = np.array([len(part) for part in parts])
    edges, rng = np.cumsum(sizes) - sizes, np.random.default_rng(0)
    draws = (rng.random(len(right)) < confidence for _ in range(_SIMULATED))
    simulated = np.stack([np.add.reduceat(draw, edges, dtype=int) / sizes for draw in draws])
    low, high = np.quantile(simulated, (0.025, 0.975), axis=0)
    accuracy, means = [part.mean() for part in parts], np.add.reduceat(confidence, edges) / sizes
    columns = {"confidence": means, "accuracy": accuracy, "from": low, "to": high}
    return pd.DataFrame({**columns, "images": sizes}), simulated


def coverage_curve(predictions: Predictions) -> pd.DataFrame:
    """What answering only from a threshold of confidence on gives: a row for each threshold.

    `coverage` is the share of images that are answered, `accuracy` the share of those that are
    right, which lies between `from` and `to` (Wilson's interval, 95% confidence).
    """
    ordered = predictions.table.sort_values("confidence", ascending=False, kind="stable")
    answered = np.arange(1, len(ordered) + 1)
    accuracy = (ordered["predicted"] == ordered["label"]).cumsum() / answered
    low, high = wilson_interval(accuracy, answered)
    columns = {"threshold": ordered["confidence"], "coverage": answered / len(ordered)}
    curve = pd.DataFrame({**columns, "accuracy": accuracy, "from": low, "to": high})
    return curve.drop_duplicates("threshold", keep="last").reset_index(drop=True)


def coverage_at(predictions: Predictions, accuracy: float = 0.95) -> tuple[float | None, str]:
    """The threshold with the most answers of at least this accuracy, and a sentence about it."""
    curve = coverage_curve(predictions)
    enough = curve[curve["accuracy"] >= accuracy]
    if enough.empty:
        return None, f"No threshold of confidence gives {accuracy:.0%} accuracy."
    _, share, _, low, high = enough.iloc[-1]
    below = [*curve["threshold"], 0.0][enough.index[-1] : enough.index[-1] + 2]
    threshold, answered = float(np.mean(below)), round(share * len(predictions.table))
    return threshold, (
        f"At {accuracy:.0%} accuracy it answers {share:.0%} of the images; threshold "
        f"{threshold:.2f}. ({answered} answers alone say: {low:.0%} to {high:.0%} accuracy.)"
    )
