"""A table of predictions to scores, with their uncertainty."""

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
