"""Each rule, on tables of which its sentence can be read off; and none without a reason."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from resnet_ft import Audit, LearningCurve, Predictions, advise


def predictions(counts, confidence=None):
    """Images by (label, predicted): how many, all with a confidence that fits the accuracy."""
    rows = [pair for pair, count in counts.items() for _ in range(count)]
    table = pd.DataFrame(rows, columns=["label", "predicted"])
    right = (table["label"] == table["predicted"]).mean()
    table["confidence"] = right if confidence is None else confidence
    table["path"] = [f"/photos/Val/a/{i}.jpg" for i in range(len(table))]
    classes = sorted(table["label"].unique())
    return Predictions(table, np.zeros((len(table), len(classes))), classes)


GOOD = {("a", "a"): 200, ("b", "b"): 196, ("b", "a"): 2, ("a", "b"): 2}


def history(*val_accuracy, loss=None):
    epochs = range(len(val_accuracy))
    losses = loss or [1 - one for one in val_accuracy]
    return pd.DataFrame({"epoch": epochs, "val_accuracy": val_accuracy, "val_loss": losses})


def audit(*pairs):
    """These files, below /photos, are copies of each other."""
    table = pd.DataFrame(pairs, columns=["path", "other"])
    return Audit(Path("/photos"), pd.DataFrame(), pd.DataFrame(), table)


def learned_from(counts):
    """The same for training images, on another machine."""
    of = predictions(counts)
    return replace(
        of, table=of.table.assign(path=[f"/there/Train/a/{i}.jpg" for i in of.table.index])
    )


def only(advice):
    (one,) = advice.to_dict("records")
    return one


def test_nothing_is_advised_where_the_numbers_ask_for_nothing():
    gain = LearningCurve(pd.DataFrame({"images": [100]}), pd.DataFrame([1]), (0.001, 0.0, 0.004))
    advice = advise(
        {"val": predictions(GOOD), "train": learned_from(GOOD)},
        history=history(0.9, 0.99, 0.99),
        audit=audit(("Train/a/1.jpg", "Train/a/2.jpg"), ("Val/a/1.jpg", "Val/a/2.jpg")),
        heads=predictions(GOOD),
        curve=gain,
    )
    assert advice.empty and advice.columns.tolist() == ["found", "do", "points"]


def test_a_model_that_guesses_is_named_first():
    advice = advise({"val": predictions({("a", "a"): 55, ("b", "a"): 45})})
    assert "no better than guessing" in advice["found"][0]
    assert "`weights`" in advice["do"][0] and advice["points"][0] == 100


def test_a_pair_of_classes_that_has_most_of_the_mistakes_is_named():
    names = "abcd"
    counts = {(name, name): 100 for name in names} | {("a", "b"): 12}
    counts |= {(one, other): 1 for one in names for other in names if one != other} | {
        ("a", "b"): 12
    }
    found = only(advise({"val": predictions(counts)}))
    assert found["found"] == "12 of 23 mistakes are 'a' taken for 'b'."
    assert "these 12 (`show_mistakes`)" in found["do"]
    assert found["points"] == pytest.approx(100 * 12 / 423)


def test_mistakes_that_fall_on_all_pairs_alike_name_none():
    names = "abcd"
    counts = {(one, other): 100 if one == other else 2 for one in names for other in names}
    counts["a", "b"] = 4  # of 26 mistakes on 12 pairs, some pair has four by chance
    assert advise({"val": predictions(counts)}).empty


@pytest.mark.parametrize(("confidence", "word"), [(0.97, "Over"), (0.83, "Under")])
def test_confidence_far_from_accuracy_is_said_with_both(confidence, word):
    counts = {("a", "a"): 180, ("b", "b"): 180, ("a", "b"): 20, ("b", "a"): 20}
    found = only(advise({"val": predictions(counts, confidence)}))
    assert found["found"] == (
        f"{word}-confident by 7 points before calibration: {confidence:.1%} sure, 90.0% right."
    )
    assert found["points"] == pytest.approx(7) and "`calibrate`" in found["do"]


def test_confidence_within_chance_of_the_accuracy_is_not_mentioned():
    counts = {("a", "a"): 9, ("b", "b"): 9, ("a", "b"): 1, ("b", "a"): 1}
    assert advise({"val": predictions(counts, 0.97)}).empty  # chance alone takes it that far


def test_training_images_that_are_known_far_better_ask_for_augmentation():
    val = predictions({("a", "a"): 170, ("b", "b"): 170, ("a", "b"): 30, ("b", "a"): 30})
    found = only(advise({"val": val, "train": predictions(GOOD)}))
    assert found["found"] == "Training 99.0%, validation 85.0%."
    assert 'augmentation="strong"' in found["do"] and found["points"] == pytest.approx(14)


def test_training_images_that_are_not_known_either_ask_for_more_training():
    half = predictions({("a", "a"): 160, ("b", "b"): 160, ("a", "b"): 40, ("b", "a"): 40})
    found = only(advise({"val": half, "train": half}))
    assert found["found"] == "Of the training images, too, only 80.0% are right."
    assert "`epochs`" in found["do"]


def test_an_accuracy_that_still_rose_asks_for_more_epochs():
    found = only(advise({"val": predictions(GOOD)}, history=history(0.8, 0.85, 0.9, 0.99)))
    assert found["found"] == "Validation accuracy was still rising, by 9.0 points at the end."
    assert found["do"] == "Train a new run for 6 `epochs`."


@pytest.mark.parametrize(
    "past",
    [
        history(0.8, 0.9, 0.989, 0.99),  # by less than two of 400 images
        history(0.8, 0.99, 0.98),
        history(0.8, 0.9, 0.99, loss=[1, 0.2, 0.3]),
        history(0.8),  # the head alone
    ],
)
def test_an_accuracy_that_stood_still_does_not(past):
    assert advise({"val": predictions(GOOD)}, history=past).empty


def test_copies_of_training_images_are_counted_and_the_rest_is_scored():
    pairs = [(f"Train/a/{i}.jpg", f"Val/a/{i}.jpg") for i in range(20)]
    pairs += [(f"Val/a/{i}.jpg", f"Train/a/{i}.jpg") for i in range(20, 24)]
    pairs += [("Val/a/30.jpg", "Val/a/31.jpg"), ("Train/a/40.jpg", "Train/a/41.jpg")]
    found = only(advise({"val": predictions(GOOD)}, heads=learned_from(GOOD), audit=audit(*pairs)))
    assert found["found"] == (  # 372 of 376
        "24 of 400 validation images are copies of training images: without them 98.9% are right."
    )
    assert found["points"] == pytest.approx(6) and "notebook 2" in found["do"]


def test_copies_of_images_that_were_left_out_of_the_training_do_not_count():
    out = audit(("Train/a/500.jpg", "Val/a/1.jpg"))  # it learned from 0.jpg to 399.jpg
    assert advise({"val": predictions(GOOD)}, heads=learned_from(GOOD), audit=out).empty
    assert advise({"val": predictions(GOOD)}, audit=out).empty  # nobody knows what it learned from


def test_a_class_of_few_images_is_named_with_what_it_costs():
    train = learned_from({("a", "a"): 300, ("b", "b"): 9})
    found = only(advise({"val": predictions(GOOD), "train": train}))
    assert found["found"] == "Class 'b' has 9 training images, the largest 300."
    assert found["points"] == pytest.approx(100 * 2 / 400) and "`balance`" in found["do"]


def labelled(wrong):
    """Of a good model: so many images are labelled a, and it is sure that they are b."""
    of = predictions({("a", "a"): 200, ("b", "b"): 200, ("a", "b"): wrong})
    of_b = np.array([0.01] * 200 + [0.99] * 200 + [0.999] * wrong)
    return replace(of, probabilities=np.column_stack([1 - of_b, of_b]))


def test_labels_to_look_at_are_counted_among_images_that_the_heads_had_not_seen():
    found = only(advise({"val": predictions(GOOD)}, heads=labelled(wrong=5)))
    assert found["found"] == "Labels to look at: 5." and "review_label_errors" in found["do"]
    assert found["points"] == pytest.approx(100 * 5 / 405)


def test_a_model_that_guesses_questions_no_labels():
    guess = predictions({("a", "b"): 30, ("b", "b"): 30})
    guess = replace(guess, probabilities=np.tile([0.4, 0.6], (60, 1)))
    assert not advise({"val": guess})["found"].str.contains("Labels").any()


def test_photographs_are_asked_for_where_the_curve_promises_something():
    curve = LearningCurve(
        pd.DataFrame({"images": [50, 100]}), pd.DataFrame([1]), (0.014, 0.006, 0.021)
    )
    found = only(advise({"val": predictions(GOOD)}, curve=curve))
    assert found["found"] == "Doubling to 200 images per class: about +1.4 points (0.6 to 2.1)."
    assert found["points"] == pytest.approx(1.4)


def test_the_weightiest_come_first_and_no_more_than_asked_for():
    val = predictions({("a", "a"): 170, ("b", "b"): 185, ("a", "b"): 35, ("b", "a"): 10}, 0.97)
    train = learned_from({("a", "a"): 300, ("b", "b"): 9})
    more = {"history": history(0.5, 0.6, 0.9), "heads": labelled(wrong=5)}
    advice = advise({"val": val, "train": train}, **more)
    assert len(advice) == 6 and advice["points"].is_monotonic_decreasing
    first = advise({"val": val, "train": train}, **more, most=2)
    pd.testing.assert_frame_equal(first, advice[:2])
