import numpy as np
import pandas as pd
import pytest
import torch

from resnet_ft import Predictions
from resnet_ft.models.calibration import strangeness
from resnet_ft.training.calibrate import fit_familiarity


def seen(features, labels, classes=("ant", "bee")):
    table = pd.DataFrame({"label": [classes[label] for label in labels]})
    shares = np.zeros((len(table), len(classes)))
    return Predictions(table, shares, list(classes), features=np.array(features, np.float16))


def test_strangeness_is_half_of_one_minus_the_cosine_to_the_nearest_mean():
    means = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    features = torch.tensor([[5.0, 0, 0], [0, 0, 2], [3, 4, 0], [-1, 0, 0]])
    # cosines to the nearer one: 1, 0, 4/5 and, for the opposite of the first, 0 (to the second)
    expected = torch.tensor([0, 1 / 2, (1 - 4 / 5) / 2, 1 / 2])
    assert torch.allclose(strangeness(features, means), expected)


def test_means_are_those_of_the_training_classes_and_the_threshold_that_of_validation():
    train = seen([[2, 0, 0], [0, 0, 7], [1, 1, 0]], [0, 1, 0])
    angles = np.linspace(0, 1, 101)  # radians from the mean of "bee"
    val = seen([[0, np.sin(a), np.cos(a)] for a in angles], [1] * 101)
    means, strangest = fit_familiarity(train, val)
    half = np.pi / 8  # between 0 and 45 degrees
    expected = torch.tensor([[np.cos(half), np.sin(half), 0], [0, 0, 1]])
    assert torch.allclose(means.double(), expected, atol=1e-3)
    # The 95th of 100 angles is 0.95; cos(0.95) = 0.5817; to "ant" it is sin(0.95) sin(half) = 0.311
    assert strangest == pytest.approx((1 - np.cos(0.95)) / 2, abs=2e-3)
    unfamiliar = strangeness(torch.tensor(val.features), means) > strangest
    assert unfamiliar.float().mean() <= 0.05


def test_a_class_without_training_images_is_nothing_familiar():
    train = seen([[1, 0], [1, 0]], [0, 0])
    assert fit_familiarity(train, seen([[0, 1]], [1]))[0].shape == (1, 2)


def test_without_features_nothing_is_known():
    train = seen([[1, 0]], [0])
    bare = Predictions(train.table, train.probabilities, train.classes)
    assert fit_familiarity(bare, train) == fit_familiarity(train, bare) == (None, None)
