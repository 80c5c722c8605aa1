import numpy as np
import pandas as pd
import pytest

from resnet_ft import (
    Predictions,
    accuracy_interval,
    accuracy_summary,
    class_scores,
    confusion_matrix,
)


def predictions(labels, predicted, classes="abc"):
    table = pd.DataFrame({"label": list(labels), "predicted": list(predicted)})
    return Predictions(table, np.zeros((len(table), len(classes))), list(classes))


def test_precision_recall_and_f1_follow_their_definitions():
    scores = class_scores(predictions("aaaabb", "aaabba"))
    assert scores.loc["a", "precision"] == pytest.approx(3 / 4)  # 3 of the 4 called a
    assert scores.loc["a", "recall"] == pytest.approx(3 / 4)  # 3 of the 4 that are a
    assert scores.loc["b", "f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert scores.loc["c"].tolist() == [0, 0, 0, 0]
    assert scores.loc["mean of classes", "recall"] == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert scores["images"].tolist() == [4, 2, 0, 6]


def test_the_confusion_matrix_has_true_classes_as_rows():
    counts = confusion_matrix(predictions("aab", "abb"))
    assert counts.loc["a", "b"] == 1
    assert counts.to_numpy().tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_the_interval_is_the_one_of_wilson():
    # Wilson (1927) for k of n at z = 1.96: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    n, k, z = 20, 18, 1.959964
    p = k / n
    centre, spread = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = [(centre - spread) / (1 + z**2 / n), (centre + spread) / (1 + z**2 / n)]
    found = accuracy_interval(predictions("a" * 20, "a" * 18 + "bb"))
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_perfect_score_on_few_images_is_not_certain():
    low, high = accuracy_interval(predictions("ab", "ab"))
    assert high == 1 and low < 0.5


def test_the_summary_has_a_row_a_split():
    summary = accuracy_summary({"val": predictions("aab", "aab"), "test": predictions("ab", "bb")})
    assert summary["images"].to_dict() == {"val": 3, "test": 2}
    assert summary.loc["test", "accuracy"] == 0.5
    assert (summary["from"] <= summary["accuracy"]).all()
