"""A table of predictions to scores, with their uncertainty."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix as _confusion_matrix
from sklearn.metrics import precision_recall_fscore_support

from resnet_ft.evaluation.predictions import Predictions


def class_scores(predictions: Predictions) -> pd.DataFrame:
    """Precision, recall and F1 of each class, and their mean; `images` says how many there were.

    A class that was never predicted has precision 0, and so has one without images in recall.
    """
    precision, recall, f1, images = precision_recall_fscore_support(
        predictions.table["label"],
        predictions.table["predicted"],
        labels=predictions.classes,
        zero_division=0,
    )
    columns = {"precision": precision, "recall": recall, "f1": f1, "images": images}
    scores = pd.DataFrame(columns, index=predictions.classes)
    mean = scores.mean().to_frame("mean of classes").T.assign(images=images.sum())
    return pd.concat([scores, mean]).astype({"images": int})


def confusion_matrix(predictions: Predictions) -> pd.DataFrame:
    """How many images of each class (rows) were predicted to be of each class (columns)."""
    table, classes = predictions.table, predictions.classes
    counts = _confusion_matrix(table["label"], table["predicted"], labels=classes)
    return pd.DataFrame(counts, index=classes, columns=classes)


def accuracy_interval(predictions: Predictions, *, confidence: float = 0.95) -> tuple[float, float]:
    """Between which values the accuracy lies, given how few images were scored.

    The score interval of Wilson (1927), which holds near 0 and 1 and for few images.
    """
    correct = int((predictions.table["label"] == predictions.table["predicted"]).sum())
    interval = binomtest(correct, len(predictions.table)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_summary(predictions: dict[str, Predictions]) -> pd.DataFrame:
    """A row a split: how many images, the accuracy, and between which values it lies (95 %)."""
    rows = {
        split: (len(scored.table), scored.accuracy, *accuracy_interval(scored))
        for split, scored in predictions.items()
    }
    return pd.DataFrame.from_dict(rows, "index", columns=["images", "accuracy", "from", "to"])


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
