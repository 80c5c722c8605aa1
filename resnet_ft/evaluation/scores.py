"""From predictions to scores, with their uncertainty, and to labels that are probably wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn import metrics

from resnet_ft.evaluation.predictions import Predictions

_ROWS = 10_000  # images that label errors are looked for in at once
_SAMPLES, _INTERVAL = 1000, (0.025, 0.975)  # of the bootstrap


def accuracy_summary(predictions: dict[str, Predictions]) -> pd.DataFrame:
    """A row per split: how many images, the accuracy, and its interval at 95% confidence.

    Where classes have unequal numbers of images, also the balanced accuracy, which is the mean of
    the classes' recalls, and its interval by the bootstrap (see `class_scores`).
    """
    rows = {
        split: (len(scored.table), scored.accuracy, *accuracy_interval(scored))
        for split, scored in predictions.items()
    }
    table = pd.DataFrame.from_dict(rows, "index", columns=["images", "accuracy", "from", "to"])
    if any(one.table["label"].value_counts().nunique() > 1 for one in predictions.values()):
        for split, scored in predictions.items():
            counts = confusion_matrix(scored).to_numpy()
            present = counts.any(axis=1)
            recall = counts.diagonal()[present] / counts.sum(axis=1)[present]
            drawn = np.nanmean(_bootstrapped(counts)[0], axis=1)
            columns = ["balanced", "balanced_from", "balanced_to"]
            table.loc[split, columns] = [recall.mean(), *np.quantile(drawn, _INTERVAL)]
    return table


def accuracy_interval(predictions: Predictions, *, confidence: float = 0.95) -> tuple[float, float]:
    """The interval in which the accuracy lies, given how few images were scored.

    The score interval of Wilson (1927), which holds near 0 and 1 and for few images.
    """
    low, high = wilson_interval(predictions.accuracy, len(predictions.table), confidence)
    return float(low), float(high)


def wilson_interval(accuracy: Any, count: Any, confidence: float = 0.95) -> tuple[Any, Any]:
    """The interval of an accuracy on `count` images; of several in arrays. nan for no images."""
    z = norm.ppf((1 + confidence) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        z2 = z**2 / np.asarray(count, dtype=float)
        centre = accuracy + z2 / 2
        spread = np.sqrt(accuracy * (1 - accuracy) * z2 + z2**2 / 4)
        low, high = (centre - spread) / (1 + z2), (centre + spread) / (1 + z2)
    return np.maximum(low, 0), np.minimum(high, 1)


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
    images. `recall_from` and `recall_to`, `f1_from` and `f1_to` are intervals at 95% confidence:
    Wilson's for the recall of a class, for the others that of 1,000 bootstrap samples of the images
    (Efron, 1979).
    """
    table, classes = predictions.table, predictions.classes
    columns = metrics.precision_recall_fscore_support(
        table["label"], table["predicted"], labels=classes, zero_division=0
    )
    names = ["precision", "recall", "f1", "images"]
    scores = pd.DataFrame(dict(zip(names, columns, strict=True)), index=classes)
    mean = scores.mean().to_frame("mean of classes").T.assign(images=scores["images"].sum())
    table = pd.concat([scores, mean]).astype({"images": int})
    recalls, f1 = _bootstrapped(confusion_matrix(predictions).to_numpy())
    of_mean = np.quantile(np.nan_to_num(recalls).mean(axis=1), _INTERVAL)
    of_each = wilson_interval(scores["recall"], scores["images"])
    table["recall_from"], table["recall_to"] = (
        np.append(*ends) for ends in zip(of_each, of_mean, strict=True)
    )
    with_mean = np.column_stack([f1, f1.mean(axis=1)])
    table["f1_from"], table["f1_to"] = np.quantile(with_mean, _INTERVAL, axis=0)
    return table


def _bootstrapped(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recalls and F1, each (samples, C), of bootstrap samples of a confusion matrix's images.

    The recall of a class without images in a sample is nan.
    """
    true, predicted = counts.nonzero()
    shares = counts[true, predicted] / counts.sum()
    drawn = np.random.default_rng(0).multinomial(counts.sum(), shares, size=_SAMPLES)
    right, of_true, of_predicted = np.zeros((3, len(counts), _SAMPLES))
    np.add.at(of_true, true, drawn.T)
    np.add.at(of_predicted, predicted, drawn.T)
    right[true[true == predicted]] = drawn.T[true == predicted]
    with np.errstate(invalid="ignore"):
        recalls = (right / of_true).T
    return recalls, (2 * right / np.maximum(of_true + of_predicted, 1)).T


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
    labels, classes = predictions.labels, len(predictions.classes)
    of_label = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    thresholds = np.full(classes, np.inf)  # a class without images is no candidate
    np.divide(np.bincount(labels, of_label, classes), counts, thresholds, where=counts > 0)
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
