import numpy as np
import pandas as pd

from resnet_ft import Predictions, find_label_errors


def predictions(labels: list[str], probabilities: list[list[float]]) -> Predictions:
    classes = ["ant", "bee", "cat"]
    table = pd.DataFrame({"path": [f"{i}.jpg" for i in range(len(labels))], "label": labels})
    return Predictions(table, np.array(probabilities, dtype=np.float32), classes)


def test_the_published_rule_is_followed():
    # Thresholds, the means of p(label): ant (0.9 + 0.7 + 0.2) / 3 = 0.6, bee (0.8 + 0.4) / 2 = 0.6.
    said = predictions(
        ["ant", "ant", "ant", "bee", "bee"],
        [[0.9, 0.1, 0], [0.7, 0.3, 0], [0.2, 0.8, 0], [0.2, 0.8, 0], [0.55, 0.4, 0.05]],
    )
    errors = find_label_errors(said)
    # 2.jpg: p(bee) = 0.8 reaches 0.6. 4.jpg: p(ant) = 0.55 does not, though it is the largest.
    assert errors["path"].tolist() == ["2.jpg"]
    assert errors["suggested"].tolist() == ["bee"]
    assert np.isclose(errors["margin"][0], 0.2 - 0.8)


def test_the_surest_errors_come_first():
    said = predictions(
        ["ant"] * 4 + ["bee"] * 2,
        [[0.9, 0.1, 0], [0.9, 0.1, 0], [0.3, 0.7, 0], [0.1, 0.9, 0], [0.4, 0.6, 0], [0.4, 0.6, 0]],
    )
    assert find_label_errors(said)["path"].tolist() == ["3.jpg", "2.jpg"]


def test_a_class_without_images_is_never_suggested():
    said = predictions(["ant", "bee"], [[0.1, 0.1, 0.8], [0.1, 0.1, 0.8]])
    assert find_label_errors(said).empty


def test_swapped_labels_are_found_among_noisy_predictions():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 300)
    logits = rng.normal(0, 1, (300, 3)) + 6 * np.eye(3)[true]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    given = true.copy()
    swapped = rng.choice(300, 20, replace=False)
    given[swapped] = (given[swapped] + 1) % 3
    errors = find_label_errors(
        predictions([["ant", "bee", "cat"][i] for i in given], probabilities)
    )
    first = {int(path.split(".")[0]) for path in errors["path"].head(20)}
    assert len(first & set(swapped.tolist())) >= 18
