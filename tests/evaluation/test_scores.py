import re

import numpy as np
import pandas as pd
import pytest
import torch
import torchmetrics
from scipy.stats import binomtest
from sklearn import metrics

from resnet_ft import (
    Predictions,
    accuracy_interval,
    accuracy_summary,
    class_scores,
    confusion_matrix,
    find_label_errors,
    largest_class_share,
    scored_weights,
    suspect_labels,
    verdict,
)


def predictions(labels, predicted, classes="abc"):
    table = pd.DataFrame({"label": list(labels), "predicted": list(predicted)})
    return Predictions(table, np.zeros((len(table), len(classes))), list(classes))


def test_precision_recall_and_f1_follow_their_definitions():
    scores = class_scores(predictions("aaaabb", "aaabba"))
    assert scores.loc["a", "precision"] == pytest.approx(3 / 4)  # 3 of the 4 called a
    assert scores.loc["a", "recall"] == pytest.approx(3 / 4)  # 3 of the 4 that are a
    assert scores.loc["b", "f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert scores.loc["c", ["precision", "recall", "f1", "images"]].tolist() == [0, 0, 0, 0]
    assert scores.loc["mean of classes", "recall"] == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert scores["images"].tolist() == [4, 2, 0, 6]


def test_the_confusion_matrix_has_true_classes_as_rows():
    counts = confusion_matrix(predictions("aab", "abb"))
    assert counts.loc["a", "b"] == 1
    assert counts.to_numpy().tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_the_interval_is_that_of_wilson():
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


def test_the_summary_has_a_row_per_split():
    summary = accuracy_summary({"val": predictions("aab", "aab"), "test": predictions("ab", "bb")})
    assert summary["images"].to_dict() == {"val": 3, "test": 2}
    assert summary.loc["test", "accuracy"] == 0.5
    assert (summary["from"] <= summary["accuracy"]).all()


def random_predictions(seed=0, images=300):
    """Three classes of unequal size, of which two thirds are predicted right."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, images, p=[0.6, 0.3, 0.1])
    predicted = np.where(rng.random(images) < 2 / 3, labels, rng.integers(0, 3, images))
    return labels, predicted, predictions(["abc"[i] for i in labels], ["abc"[i] for i in predicted])


def test_scores_are_those_of_torchmetrics_and_scikit_learn():
    labels, predicted, said = random_predictions()
    scores, theirs = class_scores(said), torchmetrics.functional.classification
    for name, function in (
        ("precision", theirs.multiclass_precision),
        ("recall", theirs.multiclass_recall),
        ("f1", theirs.multiclass_f1_score),
    ):
        pair = torch.tensor(predicted), torch.tensor(labels)
        assert np.allclose(scores[name][:3], function(*pair, 3, average="none"))
        assert scores[name].iloc[3] == pytest.approx(float(function(*pair, 3, average="macro")))
    balanced = accuracy_summary({"val": said}).loc["val", "balanced"]
    assert balanced == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))


def test_recall_has_wilsons_interval():
    scores = class_scores(predictions("aaaabb", "aaabba"))
    expected = binomtest(3, 4).proportion_ci(0.95, method="wilson")
    assert scores.loc["a", ["recall_from", "recall_to"]].tolist() == pytest.approx([*expected])
    assert scores.loc["c", ["recall_from", "recall_to"]].isna().all()  # it has no images


def test_the_bootstrap_draws_images():
    labels, predicted, said = random_predictions()
    rng, f1, balanced = np.random.default_rng(1), [], []
    for _ in range(400):
        rows = rng.integers(0, len(labels), len(labels))
        f1.append(metrics.f1_score(labels[rows], predicted[rows], average=None))
        balanced.append(metrics.balanced_accuracy_score(labels[rows], predicted[rows]))
    expected = np.quantile(np.column_stack([f1, np.mean(f1, axis=1)]), (0.025, 0.975), axis=0)
    assert np.allclose(class_scores(said)[["f1_from", "f1_to"]].T, expected, atol=0.02)
    found = accuracy_summary({"val": said}).loc["val", ["balanced_from", "balanced_to"]]
    assert np.allclose(found.tolist(), np.quantile(balanced, (0.025, 0.975)), atol=0.02)


def test_classes_of_equal_size_have_no_balanced_accuracy_of_their_own():
    assert "balanced" not in accuracy_summary({"val": predictions("aabb", "abbb", "ab")})


def answers(labels: list[str], probabilities: list[list[float]]) -> Predictions:
    classes = ["ant", "bee", "cat"]
    table = pd.DataFrame({"path": [f"{i}.jpg" for i in range(len(labels))], "label": labels})
    return Predictions(table, np.array(probabilities, dtype=np.float32), classes)


def test_the_published_rule_is_followed():
    # Thresholds, the means of p(label): ant (0.9 + 0.7 + 0.2) / 3 = 0.6, bee (0.8 + 0.4) / 2 = 0.6.
    said = answers(
        ["ant", "ant", "ant", "bee", "bee"],
        [[0.9, 0.1, 0], [0.7, 0.3, 0], [0.2, 0.8, 0], [0.2, 0.8, 0], [0.55, 0.4, 0.05]],
    )
    errors = find_label_errors(said)
    # 2.jpg: p(bee) = 0.8 reaches 0.6. 4.jpg: p(ant) = 0.55 does not, though it is the largest.
    assert errors["path"].tolist() == ["2.jpg"]
    assert errors["suggested"].tolist() == ["bee"]
    assert np.isclose(errors["margin"][0], 0.2 - 0.8)


def test_the_most_probable_errors_come_first():
    said = answers(
        ["ant"] * 4 + ["bee"] * 2,
        [[0.9, 0.1, 0], [0.9, 0.1, 0], [0.3, 0.7, 0], [0.1, 0.9, 0], [0.4, 0.6, 0], [0.4, 0.6, 0]],
    )
    assert find_label_errors(said)["path"].tolist() == ["3.jpg", "2.jpg"]


def test_a_class_without_images_is_never_suggested():
    said = answers(["ant", "bee"], [[0.1, 0.1, 0.8], [0.1, 0.1, 0.8]])
    assert find_label_errors(said).empty


def test_swapped_labels_are_found_among_noisy_predictions():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 300)
    logits = rng.normal(0, 1, (300, 3)) + 6 * np.eye(3)[true]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    given = true.copy()
    swapped = rng.choice(300, 20, replace=False)
    given[swapped] = (given[swapped] + 1) % 3
    errors = find_label_errors(answers([["ant", "bee", "cat"][i] for i in given], probabilities))
    first = {int(path.split(".")[0]) for path in errors["path"].head(20)}
    assert len(first & set(swapped.tolist())) >= 18


def scored(right: int, wrong: int) -> Predictions:
    """83 bees and 70 ants, as in the validation images of the tutorial, of which some are right."""
    labels = ["bee"] * 83 + ["ant"] * 70
    other = {"bee": "ant", "ant": "bee"}
    assert right + wrong == len(labels)
    predicted = labels[:right] + [other[label] for label in labels[right:]]
    sure = [0.9] * right + [0.95] * wrong  # surer than usual of another class
    probabilities = [
        [p, 1 - p] if name == "ant" else [1 - p, p] for p, name in zip(sure, predicted, strict=True)
    ]
    paths = [f"{i}.jpg" for i in range(len(labels))]
    table = pd.DataFrame({"path": paths, "label": labels, "predicted": predicted})
    return Predictions(table, np.array(probabilities, np.float32), ["ant", "bee"])


def test_the_largest_class_is_what_a_model_has_to_beat():
    assert largest_class_share(["a", "b", "b", "c"]) == 0.5
    assert largest_class_share([1, 1, 0]) == pytest.approx(2 / 3)
    assert largest_class_share(scored(84, 69).table["label"]) == pytest.approx(83 / 153)


@pytest.mark.parametrize(
    ("right", "words"),
    [
        (
            142,
            "92.8% of 153 val images are predicted right; always answering 'bee' would get 54.2%",
        ),
        (142, "has learned something"),
        (84, "54.9% .* but always answering 'bee' would get 54.2%: .* may be chance"),
        (83, "54.2% .* no better than guessing"),
        (50, "no better than guessing"),
    ],
)
def test_the_verdict_names_what_guessing_would_get(right, words):
    assert re.search(words, verdict(scored(right, 153 - right), "val"))


def test_a_model_that_guesses_suggests_no_labels(capsys):
    assert len(find_label_errors(scored(84, 69))) > 0
    assert suspect_labels(scored(84, 69)).empty
    assert "No label is questioned: 54.9% of 153 images" in capsys.readouterr().out
    good = scored(142, 11)
    pd.testing.assert_frame_equal(suspect_labels(good), find_label_errors(good))
    assert capsys.readouterr().out == "11 labels to check\n"
    assert suspect_labels(scored(153, 0)).empty
    assert capsys.readouterr().out == "No labels to check\n"


def test_all_weights_that_a_run_scored_are_listed_and_the_kept_ones_marked():
    history = pd.DataFrame(
        {
            "epoch": [0, 1, 2],
            "val_accuracy": [0.7, 0.6, 0.8],
            "val_loss": [0.9, 0.8, 0.7],
            "ema_val_accuracy": [np.nan, 0.8, 0.8],
            "ema_val_loss": [np.nan, 0.75, 0.6],
            "between_val_accuracy": [np.nan, np.nan, 0.75],
            "between_val_loss": [np.nan, np.nan, 0.5],
            "between_share": [np.nan, np.nan, 0.25],
        }
    )
    scored = scored_weights(history)
    assert scored["weights"].tolist() == [
        "the head alone",
        *("after epoch 1", "average after epoch 1"),
        *("after epoch 2", "average after epoch 2", "25% of the way from head to average"),
    ]
    assert scored["kept"].tolist() == [False] * 5 + [True]  # the lowest loss
    history.loc[2, "between_val_loss"] = 0.65
    assert scored_weights(history)["kept"].tolist() == [False] * 4 + [True, False]  # a tie, by loss
    history.loc[0, "val_loss"] = 0.55
    assert scored_weights(history)["kept"].tolist() == [True] + [False] * 5
    assert scored_weights(history[["epoch", "val_accuracy", "val_loss"]])["epoch"].tolist() == [
        *(0, 1, 2)
    ]
