"""Predictions of which it is known how far their confidence can be trusted."""

import numpy as np
import pandas as pd
from scipy.special import softmax

from resnet_ft import Predictions


def predictions(logits, labels):
    logits, labels = np.asarray(logits, np.float32), np.asarray(labels)
    classes = [f"class {number}" for number in range(logits.shape[1])]
    shares, names = softmax(logits.astype(float), axis=1), np.array(classes)
    table = pd.DataFrame(
        {
            "label": names[labels],
            "predicted": names[shares.argmax(axis=1)],
            "confidence": shares.max(axis=1),
            "loss": -np.log(shares[np.arange(len(labels)), labels]),
        }
    )
    return Predictions(table, shares, classes, logits)


def overconfident(factor, images=2000, classes=4, seed=0):
    """Labels drawn from the softmax of logits, which are then multiplied by a factor."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (images, classes))
    shares = softmax(logits, axis=1)
    labels = (rng.random((images, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    return predictions(factor * logits, labels)


def from_confidence(confidence, right):
    """Two classes; the first is always predicted, with this confidence."""
    logits = np.log(np.column_stack([confidence, 1 - np.asarray(confidence)]))
    return predictions(logits, 1 - np.asarray(right, int))
