"""Labels that are probably wrong, by what a model says of images that it did not learn from."""

import numpy as np
import pandas as pd

from resnet_ft.evaluation.predictions import Predictions


def find_label_errors(predictions: Predictions) -> pd.DataFrame:
    """Images whose label is probably wrong, the most probable first.

    `predictions` must be of images that the model has not been trained on. Returns `path`, `label`,
    `suggested` and `margin`, the probability of the label less that of the most probable other
    class: -1 where the model is certain of another one.

    Confident learning (Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in
    dataset labels", JAIR 70, 2021): an image counts as one of class j if its probability of j is at
    least the mean of that probability over the images labelled j, and as a label error if the most
    probable of those classes is not its label.
    """
    probabilities = predictions.probabilities
    position = {name: label for label, name in enumerate(predictions.classes)}
    labels = predictions.table["label"].map(position).to_numpy()
    rows, classes = np.arange(len(labels)), range(len(position))
    # A class that no image is labelled with is no candidate.
    thresholds = np.array(
        [probabilities[labels == j, j].mean() if (labels == j).any() else np.inf for j in classes]
    )
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    suggested = confident.argmax(axis=1)
    suggested = np.where(confident[rows, labels] >= confident[rows, suggested], labels, suggested)
    others = probabilities.copy()
    others[rows, labels] = -1
    margins = probabilities[rows, labels] - others.max(axis=1)
    table = pd.DataFrame(
        {
            "path": predictions.table["path"],
            "label": predictions.table["label"],
            "suggested": [predictions.classes[j] for j in suggested],
            "margin": margins,
        }
    )
    is_error = (confident[rows, suggested] >= 0) & (suggested != labels)
    return table[is_error].sort_values("margin", kind="stable").reset_index(drop=True)
