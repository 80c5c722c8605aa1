"""From predictions to scores, with their uncertainty, and to labels that are probably wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn import metrics

from resnet_ft.evaluation.predictions import Predictions

_ROWS = 10_000  # images that label errors are looked for in at once


def accuracy_summary(predictions: dict[str, Predictions]) -> pd.DataFrame:
    """A row per split: how many images, the accuracy, and its interval at 95% confidence."""
    rows = {
        split: (len(scored.table), scored.accuracy, *accuracy_interval(scored))
        for split, scored in predictions.items()
    }
    return pd.DataFrame.from_dict(rows, "index", columns=["images", "accuracy", "from", "to"])


def accuracy_interval(predictions: Predictions, *, confidence: float = 0.95) -> tuple[float, float]:
    """The interval in which the accuracy lies, given how few images were scored.

    The score interval of Wilson (1927), which holds near 0 and 1 and for few images.
    """
    return wilson_interval(predictions.accuracy, len(predictions.table), confidence)


def wilson_interval(accuracy: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of an accuracy on `count` images."""
    interval = binomtest(round(accuracy * count), count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def largest_class_share(labels: Sequence[object] | pd.Series) -> float:
    """The accuracy of always answering the most frequent label, which a model has to beat."""
    return float(pd.Series(labels).value_counts(normalize=True).iloc[0])


def beats_largest_class(accuracy: float, labels: Sequence[object] | pd.Series) -> bool:
    """Whether an accuracy on images of these labels is clearly above `largest_class_share`.

    That is, the whole of its interval at 95% confidence.
    """
    known = bool(np.isfinite(accuracy))
    return known and wilson_interval(accuracy, len(labels))[0] > largest_class_share(labels)


def verdict(predictions: Predictions, split: str = "") -> str:
    """In words: the accuracy beside that of always answering the largest class."""
    labels = predictions.table["label"]
    share, name = largest_class_share(labels), labels.value_counts().index[0]
    images = f"{len(labels)} {split} images" if split else f"{len(labels)} images"
    what = f"{predictions.accuracy:.1%} of {images} are predicted right"
    always = f"always answering {name!r} would get {share:.1%}"
    if beats_largest_class(predictions.accuracy, labels):
        return f"{what}; {always}. The model has learned something."
    if predictions.accuracy > share:
        return (
            f"{what}, but {always}: with so few images, the difference may be chance. Do not rely "
            "on this model."
        )
    return f"{what}, but {always}: the model is no better than guessing. Do not rely on it."


def class_scores(predictions: Predictions) -> pd.DataFrame:
    """Precision, recall and F1 of each class, and their mean; `images` is the number of images.

    The precision of a class that was never predicted is 0, and so is the recall of one without
    images.
    """
    table, classes = predictions.table, predictions.classes
    columns = metrics.precision_recall_fscore_support(
        table["label"], table["predicted"], labels=classes, zero_division=0
    )
    names = ["precision", "recall", "f1", "images"]
    scores = pd.DataFrame(dict(zip(names, columns, strict=True)), index=classes)
    mean = scores.mean().to_frame("mean of classes").T.assign(images=scores["images"].sum())
    return pd.concat([scores, mean]).astype({"images": int})


def confusion_matrix(predictions: Predictions) -> pd.DataFrame:
    """How many images of each class (rows) were predicted to be of each class (columns)."""
    table, classes = predictions.table, predictions.classes
    counts = metrics.confusion_matrix(table["label"], table["predicted"], labels=classes)
    return pd.DataFrame(counts, index=classes, columns=classes)


def confused_pairs(predictions: Predictions) -> pd.DataFrame:
    """A row for each class `label` of which images were `predicted` to be of another one.

    `images` is how many, of as many as the class has in all, `of`; most images first.
    """
    table = predictions.table
    wrong = table[table["label"] != table["predicted"]]
    pairs = wrong.groupby(["label", "predicted"], sort=False).size().rename("images").reset_index()
    pairs["of"] = pairs["label"].map(table["label"].value_counts())
    return pairs.sort_values("images", ascending=False, kind="stable", ignore_index=True)


def find_label_errors(predictions: Predictions) -> pd.DataFrame:
    """Images whose label is probably wrong, the most probable first.

    `predictions` must be of images that the model was not trained on. Returns `path`, `label`,
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
    of_label = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=len(position))
    thresholds = np.full(len(position), np.inf)  # a class without images is no candidate
    np.divide(np.bincount(labels, of_label, len(position)), counts, thresholds, where=counts > 0)
    thresholds = thresholds.astype(probabilities.dtype)
    suggested, margin = labels.copy(), np.empty_like(of_label)
    for start in range(0, len(labels), _ROWS):  # a copy of all would be as large as all
        some = slice(start, start + _ROWS)
        others, rows = probabilities[some].copy(), np.arange(len(labels[some]))
        others[rows, labels[some]] = -1
        margin[some] = of_label[some] - others.max(axis=1)
        others[others < thresholds] = -1
        likely = others.argmax(axis=1)
        own = np.where(of_label[some] >= thresholds[labels[some]], of_label[some], -1)
        suggested[some] = np.where(others[rows, likely] > own, likely, labels[some])
    names = np.array(predictions.classes, dtype=object)
    table = predictions.table[["path", "label"]].assign(suggested=names[suggested], margin=margin)
    is_error = suggested != labels
    return table[is_error].sort_values("margin", kind="stable", ignore_index=True)


def suspect_labels(predictions: Predictions) -> pd.DataFrame:
    """`find_label_errors` of a model that can be relied on, and a printed sentence about it.

    The table is empty where the model is not clearly better than always answering the largest
    class: its opinion about labels is worth nothing then, and the sentence says so.
    """
    errors = find_label_errors(predictions)
    if not beats_largest_class(predictions.accuracy, predictions.table["label"]):
        print(f"No label is questioned: {verdict(predictions, '')}")
        return errors.head(0)
    print(f"{len(errors) or 'No'} labels to check" if len(errors) != 1 else "1 label to check")
    return errors


def scored_weights(history: pd.DataFrame) -> pd.DataFrame:
    """All weights that a run scored on its validation images, in their order.

    A row for the head alone, for each epoch, for the average beside it and, at the end of a run,
    for the weights between head and average: `weights` (their name), `epoch`, `val_accuracy`,
    `val_loss`, and `kept`, which is True for those that the run kept. That is the highest accuracy,
    in a tie the lowest loss; at the end the lowest loss of these, the head and those between.
    """
    scored: list[dict[str, Any]] = []
    kept: dict[str, Any] | None = None
    for row in history.to_dict("records"):
        for prefix, name in _SCORED.items():
            scores = {one: row.get(prefix + one, np.nan) for one in ("val_accuracy", "val_loss")}
            if np.isnan(list(scores.values())).all():
                continue
            weights = name.format(**row) if row["epoch"] else "the head alone"
            scored.append({"weights": weights, "epoch": row["epoch"], **scores})
            by_loss = prefix == "between_"
            for rival in (scored[0], scored[-1]) if by_loss else scored[-1:]:
                if not np.isnan(rival["val_accuracy"]) and _is_better(rival, kept, by_loss):
                    kept = rival
    table = pd.DataFrame(scored, columns=["weights", "epoch", "val_accuracy", "val_loss"])
    return table.assign(kept=[one is kept for one in scored])


_SCORED = {  # the beginning of a history's columns, and the weights that they are about
    "": "after epoch {epoch}",
    "ema_": "average after epoch {epoch}",
    "between_": "{between_share:.0%} of the way from head to average",
}


def _is_better(one: dict[str, Any], other: dict[str, Any] | None, by_loss: bool) -> bool:
    def rank(scores: dict[str, Any]) -> tuple[float, float]:
        return 0 if by_loss else scores["val_accuracy"], -scores["val_loss"]

    return other is None or rank(one) > rank(other)
