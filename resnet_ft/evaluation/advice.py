"""What to do next, from the numbers: each rule yields its weight, its evidence and what helps.

The weight is the share of images, or of accuracy, that is at stake.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest

from resnet_ft.audit.audit import Audit
from resnet_ft.evaluation import scores
from resnet_ft.evaluation.learning_curve import LearningCurve
from resnet_ft.evaluation.predictions import Predictions

Rule = Iterator[tuple[float, str, str]]
_FEW = 20  # training images of a class


def advise(
    predictions: Mapping[str, Predictions],
    *,
    heads: Predictions | None = None,
    history: pd.DataFrame | None = None,
    audit: Audit | None = None,
    curve: LearningCurve | None = None,
    most: int = 7,
) -> pd.DataFrame:
    """What to do next: `most` things at most, the weightiest first, each from the numbers alone.

    `predictions` are those of "val" and, if known, "train"; `heads` the cross-validated ones that
    `fit_head` left as head_predictions.csv; `history` is the run's, `audit` that of its images,
    `curve` the `learning_curve`. Returns `found` (the evidence), `do` (the parameter or cell that
    acts on it) and `points`: how many percent of the images, or of accuracy, it is about.
    """
    val, train = predictions["val"], predictions.get("train")
    rules = [guessing(val), confusing(val), too_sure(val), wrong_labels(heads or val)]
    rules += [generalising(train, val)] if train else []
    rules += [still_rising(history, val)] if history is not None else []
    rules += [more_images(curve)] if curve else []
    if learned := train or heads:
        rules += [small_classes(learned, val)]
        rules += [copies(audit, learned, val)] if audit else []
    found = sorted((one for rule in rules for one in rule), key=lambda one: -one[0])
    table = pd.DataFrame(found[:most], columns=["points", "found", "do"])
    return table.assign(points=100 * table["points"].astype(float))[["found", "do", "points"]]


def guessing(val: Predictions) -> Rule:
    """Hardly better than always answering the largest class."""
    if not scores.beats_largest_class(val.accuracy, val.table["label"]):
        do = "Check the class folders in notebook 2; use pretrained `weights` or more `epochs`."
        yield 1.0, scores.verdict(val, "validation"), do


def confusing(val: Predictions) -> Rule:
    """One class taken for another more often than chance spreads mistakes over pairs of classes."""
    found = scores.confused_pairs(val)
    pairs, mistakes = len(val.classes) * (len(val.classes) - 1), found["images"].sum()
    for label, other, count, _ in found[:1].itertuples(index=False):
        chance = pairs * binomtest(count, mistakes, 1 / pairs, "greater").pvalue
        if count > 2 and chance < 0.05:
            do = f"Look at these {count} (`show_mistakes`); add photographs that tell them apart."
            said = f"{count} of {mistakes} mistakes are {label!r} taken for {other!r}."
            yield count / len(val.table), said, do


def too_sure(val: Predictions) -> Rule:
    """Confidence that is further from the accuracy than chance takes it."""
    val = val if val.logits is None else val.calibrated(1)
    sure, right = val.table["confidence"], val.accuracy
    gap = sure.mean() - right
    if abs(gap) > max(0.02, 2 * (sure * (1 - sure)).sum() ** 0.5 / len(sure)):
        found = (
            f"{'Over' if gap > 0 else 'Under'}-confident by {100 * abs(gap):.0f} points before "
            f"calibration: {sure.mean():.1%} sure, {right:.1%} right."
        )
        yield abs(gap), found, "Rely on calibrated confidence alone (`calibrate`)."


def generalising(train: Predictions, val: Predictions) -> Rule:
    """Training images known better than others, or not known either."""
    known, right = train.accuracy, val.accuracy
    if scores.accuracy_interval(train)[0] > scores.accuracy_interval(val)[1]:
        do = 'Set `augmentation="strong"`, or add photographs.'
        yield known - right, f"Training {known:.1%}, validation {right:.1%}.", do
    elif known < 0.9:
        do = "Train for more `epochs`, at a larger `image_size`, or with a larger `arch`."
        yield 1 - known, f"Of the training images, too, only {known:.1%} are right.", do


def still_rising(history: pd.DataFrame, val: Predictions) -> Rule:
    """The last epoch had the lowest loss, and two images or more were newly right."""
    accuracy, loss = history["val_accuracy"], history["val_loss"]
    rise, epochs = accuracy.iloc[-1] - accuracy.iloc[:-1].max(), history["epoch"].iloc[-1]
    if epochs > 1 and loss.iloc[-1] <= loss.min() and rise * len(val.table) >= 2:
        found = f"Validation accuracy was still rising, by {100 * rise:.1f} points at the end."
        yield rise, found, f"Train a new run for {2 * epochs} `epochs`."


def copies(audit: Audit, learned: Predictions, val: Predictions) -> Rule:
    """Validation images of which the network has seen a copy in training."""

    def place(path: object) -> tuple[str, ...]:  # split, class and file, on any machine
        return Path(str(path)).parts[-3:]

    known = {*map(place, learned.table["path"])}
    pairs = [
        [place(audit.root / path) for path in pair]
        for pair in audit.pairs[["path", "other"]].values
    ]
    seen = {one for pair in pairs for one, other in (pair, pair[::-1]) if other in known}
    is_copy = val.table["path"].map(place).isin(seen)
    if 0 < is_copy.sum() < len(is_copy):
        right = (val.table["label"] == val.table["predicted"])[~is_copy].mean()
        found = f"{is_copy.sum()} of {len(is_copy)} validation images are copies of training images"
        do = "Exclude them in notebook 2 (`review_dataset`), and train a new run."
        yield is_copy.mean(), f"{found}: without them {right:.1%} are right.", do


def small_classes(learned: Predictions, val: Predictions) -> Rule:
    """The smallest class, where it has few training images; the weight is what it costs."""
    counts = learned.table["label"].value_counts()
    name, count = counts.index[-1], counts.iloc[-1]
    wrong = (val.table["label"] == name) & (val.table["predicted"] != name)
    if count < max(_FEW, counts.max() / 5) and len(counts) > 1:
        found = f"Class {name!r} has {count} training images, the largest {counts.max()}."
        yield wrong.mean(), found, "Add photographs of it, or set `balance`."


def wrong_labels(of: Predictions) -> Rule:
    """Labels that are probably wrong, where the opinion about them is worth something."""
    errors = scores.find_label_errors(of)
    if len(errors) and scores.beats_largest_class(of.accuracy, of.table["label"]):
        do = "Correct them with `review_label_errors`, in notebook 3 or 4."
        yield len(errors) / len(of.table), f"Labels to look at: {len(errors)}.", do


def more_images(curve: LearningCurve) -> Rule:
    """More photographs would help, as far as the head on pretrained features can tell."""
    if curve.gain[1] > 0.002:
        yield curve.gain[0], curve.sentence, "Add photographs to all classes."
