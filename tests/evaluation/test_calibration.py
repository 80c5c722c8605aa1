import numpy as np
import pytest
import torch
from confidence import from_confidence, overconfident, predictions
from scipy.optimize import brute
from scipy.special import log_softmax, softmax
from scipy.stats import binom
from sklearn.metrics import log_loss
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft import (
    Calibration,
    CheckpointError,
    ParameterError,
    Predictions,
    calibration_scores,
    coverage_at,
    coverage_curve,
    evaluate,
    fit_temperature,
    reliability,
)
from resnet_ft.evaluation.calibration import cross_calibrated


@pytest.mark.parametrize("factor", [0.5, 1, 3])
def test_the_temperature_is_that_of_a_reference_minimisation(factor):
    said = overconfident(factor, images=300)

    def reference(temperature):
        logs = log_softmax(said.logits.astype(float) / temperature, axis=1)
        return -logs[np.arange(len(logs)), said.labels].mean()

    lowest = brute(reference, (slice(0.3, 8, 0.01),))  # then polished by Nelder and Mead
    assert fit_temperature(said) == pytest.approx(float(lowest[0]), rel=1e-3)


def test_what_was_multiplied_is_divided_again():
    assert fit_temperature(overconfident(3, images=20_000)) == pytest.approx(3, rel=0.03)


def test_an_image_is_judged_with_a_temperature_that_has_not_seen_it():
    said = overconfident(3, images=200)
    changed = predictions(said.logits, np.where(np.arange(200) == 7, 3, said.labels))
    assert said.labels[7] != 3
    temperature, judged = cross_calibrated(said)
    other_temperature, others = cross_calibrated(changed)
    assert temperature != other_temperature
    assert np.array_equal(judged.probabilities[7], others.probabilities[7])
    assert not np.array_equal(judged.probabilities, others.probabilities)


def test_out_of_sample_the_loss_falls_and_the_error_comes_into_the_band():
    said = overconfident(3, images=400)
    before, after = calibration_scores(said), calibration_scores(cross_calibrated(said)[1])
    assert before["ece"] > before["band"] and before["overconfidence"] > 0.1
    assert after["log_loss"] < before["log_loss"] and after["brier"] < before["brier"]
    assert after["ece"] < after["band"]


def test_confidence_within_the_band_stays_as_it_is():
    said = overconfident(1, images=150)
    assert cross_calibrated(said)[0] == 1
    assert cross_calibrated(said)[1] is said


def test_a_temperature_that_does_not_help_unseen_images_is_left_out():
    # All are surely right but one, which is surely wrong: no fold can know of another's mistake.
    said = from_confidence([0.9999] * 59 + [0.99999], [1] * 59 + [0])
    scores = calibration_scores(said)
    assert scores["ece"] > scores["band"]
    assert cross_calibrated(said)[0] == 1
    assert fit_temperature(said) > 1.5


def test_images_that_are_all_right_do_not_make_confidence_boundless():
    assert fit_temperature(from_confidence([0.7] * 40, [1] * 40)) == pytest.approx(0.25, rel=1e-3)


def test_the_calibration_error_has_bins_of_equally_many_images():
    # Two bins of 15: confidence 0.6 with 9 of 15 right, confidence 0.9 with 9 of 15 right.
    said = from_confidence([0.6] * 15 + [0.9] * 15, ([1] * 9 + [0] * 6) * 2)
    bins = reliability(said)
    assert bins["images"].tolist() == [15, 15]
    assert np.allclose(bins["confidence"], [0.6, 0.9]) and np.allclose(bins["accuracy"], 0.6)
    scores = calibration_scores(said)
    assert scores["ece"] == pytest.approx((0 + 0.3) / 2)
    assert scores["overconfidence"] == pytest.approx(0.75 - 0.6)
    assert len(reliability(overconfident(1))) == 10 and len(reliability(overconfident(1, 9))) == 1


def test_loss_and_brier_score_are_those_of_their_definitions():
    said = overconfident(2, images=50)
    scores, labels = calibration_scores(said), [said.classes[label] for label in said.labels]
    assert scores["log_loss"] == pytest.approx(log_loss(labels, said.probabilities))
    # Brier (1950), of two classes, as 0.3² + 0.3² = 0.18 and, where wrong, 0.7² + 0.7² = 0.98
    assert calibration_scores(from_confidence([0.7, 0.7], [1, 0]))["brier"] == pytest.approx(0.58)


def test_the_band_holds_95_of_100_perfectly_calibrated_models():
    inside = []
    for seed in range(200):
        scores = calibration_scores(overconfident(1, images=150, seed=seed))
        inside.append(scores["ece"] <= scores["band"])
    assert 0.90 <= np.mean(inside) <= 0.99  # 0.95 and two standard errors of 200 draws, and a bit


def test_bands_of_single_bins_are_binomial():
    said = from_confidence([0.8] * 150, [1] * 120 + [0] * 30)
    low, high = reliability(said)[["from", "to"]].to_numpy().T
    assert np.abs(low - binom.ppf(0.025, 15, 0.8) / 15).max() < 1.01 / 15  # one image of 15
    assert np.abs(high - binom.ppf(0.975, 15, 0.8) / 15).max() < 1.01 / 15


def test_coverage_is_the_share_that_is_answered_and_accuracy_that_of_the_answers():
    said = from_confidence([0.95, 0.9, 0.8, 0.8, 0.6], [1, 1, 1, 0, 0])
    curve = coverage_curve(said)
    assert np.allclose(
        curve["threshold"], [0.95, 0.9, 0.8, 0.6]
    )  # equal ones are answered together
    assert np.allclose(curve["coverage"], [1 / 5, 2 / 5, 4 / 5, 1])
    assert np.allclose(curve["accuracy"], [1, 1, 3 / 4, 3 / 5])
    assert (curve["from"] <= curve["accuracy"]).all() and (curve["accuracy"] <= curve["to"]).all()


def test_the_threshold_lies_below_the_last_answer_and_above_what_is_not_answered():
    said = from_confidence([0.95, 0.9, 0.8, 0.8, 0.6], [1, 1, 1, 0, 0])
    threshold, sentence = coverage_at(said, 0.9)
    assert threshold == pytest.approx(0.85)
    assert "At 90% accuracy it answers 40% of the images; threshold 0.85" in sentence
    assert "34% to 100%" in sentence  # Wilson, 2 of 2: 1 / (1 + 1.96² / 2) = 0.342
    assert coverage_at(said, 0.6)[0] < 0.6  # all are answered
    assert coverage_at(from_confidence([0.9], [0])) == (
        None,
        "No threshold of confidence gives 95% accuracy.",
    )


def test_calibrated_predictions_are_divided_once():
    said = overconfident(3, images=20)
    cooler = said.calibrated(2.0)
    assert np.allclose(cooler.probabilities, softmax(said.logits.astype(float) / 2, axis=1))
    assert np.allclose(cooler.table["confidence"], cooler.probabilities.max(axis=1))
    assert cooler.table["loss"].mean() == pytest.approx(
        log_loss([said.classes[label] for label in said.labels], cooler.probabilities)
    )
    assert np.array_equal(cooler.calibrated(2.0).probabilities, cooler.probabilities)
    with pytest.raises(ParameterError, match="no logits"):
        Predictions(said.table, said.probabilities, said.classes).calibrated(2.0)


def test_evaluate_uses_the_temperature_of_these_very_weights():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    images = torch.randn(8, 3, 1, 1)
    loader = DataLoader(TensorDataset(images, torch.arange(8) % 2), batch_size=4)
    plain = evaluate(model, loader)
    with pytest.raises(ParameterError, match="no temperature"):
        evaluate(model, loader, calibrated=True)
    model.calibration = {"temperature": 2.0, "weights": plain.weights}
    found = evaluate(model, loader, calibrated=True)
    assert np.allclose(found.probabilities, plain.calibrated(2.0).probabilities)
    with torch.no_grad():
        model[1].bias += 1
    with pytest.raises(ParameterError, match="no temperature for its weights"):
        evaluate(model, loader, calibrated=True)


@pytest.mark.parametrize(
    "damage",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"threshold": 1.5},
        {"threshold": "high"},
        {"more": 1},
        {"means": torch.full((2, 3), float("nan")), "strangest": 0.1},
        {"means": torch.zeros(3), "strangest": 0.1},
        {"means": [1], "strangest": 0.1},
        {"means": torch.zeros(2, 3)},
        {"strangest": 0.1},
        {"means": torch.zeros(2, 3), "strangest": 7},
    ],
)
def test_a_calibration_that_nobody_wrote_is_refused(damage):
    good = {"temperature": 1.5, "weights": "", "images": 9, "before": {}, "after": {}}
    assert Calibration.of(good).temperature == 1.5
    with pytest.raises(CheckpointError, match=r"The calibration cannot be read.*calibrate\(run\)"):
        Calibration.of(good | damage)
