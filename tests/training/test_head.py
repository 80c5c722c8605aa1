import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from resnet_ft.training import head as module
from resnet_ft.training.head import solve_head


def clusters(per_class, num_classes=3, dimensions=20, spread=2.0, seed=0):
    """Features around a centre for each class, far from the origin and of large scale."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dimensions, generator=generator)
    labels = torch.arange(num_classes).repeat_interleave(torch.tensor(per_class))
    noise = torch.randn(len(labels), dimensions, generator=generator)
    return 5 + 3 * (centres[labels] + spread * noise), labels


def scaled(features):
    centred = features - features.mean(dim=0)
    return centred / centred.square().sum(dim=1).mean().sqrt()


def test_the_head_is_scikit_learns_logistic_regression_of_the_same_penalty():
    features, labels = clusters([40, 30, 30])
    solved = solve_head(features, labels, 3)
    # scikit-learn minimises C * sum of losses + half the squared norm.
    regression = LogisticRegression(C=1 / (solved.penalty * 100), max_iter=10_000, tol=1e-8)
    regression.fit(scaled(features).numpy(), labels.numpy())
    expected = regression.predict_proba(scaled(features).numpy())
    found = (features @ solved.weight.T + solved.bias).softmax(dim=1)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_probabilities_of_an_image_come_from_heads_that_have_not_seen_it():
    features, _ = clusters([60, 60], num_classes=2, dimensions=200, spread=20.0)
    noise = torch.randint(0, 2, (120,), generator=torch.Generator().manual_seed(3))
    solved = solve_head(features, noise, 2)
    seen = (features @ solved.weight.T + solved.bias).argmax(dim=1)
    unseen = solved.probabilities.argmax(dim=1)
    # Labels that mean nothing: no head can do better than chance on unseen images.
    assert (unseen == noise).float().mean() < 0.65
    assert (seen == noise).float().mean() > (unseen == noise).float().mean()
    torch.testing.assert_close(solved.probabilities.sum(dim=1), torch.ones(120))


def test_out_of_sample_accuracy_is_near_that_on_new_images():
    features, labels = clusters([150, 150, 150], spread=2.5)
    new, new_labels = clusters([2000, 2000, 2000], spread=2.5, seed=0)
    solved = solve_head(features, labels, 3)
    estimate = (solved.probabilities.argmax(dim=1) == labels).float().mean()
    true = ((new @ solved.weight.T + solved.bias).argmax(dim=1) == new_labels).float().mean()
    assert estimate == pytest.approx(float(true), abs=0.04)


def test_noisier_features_are_given_a_stronger_penalty():
    clear = solve_head(*clusters([50, 50, 50], spread=0.3), 3)
    noisy = solve_head(*clusters([50, 50, 50], spread=8.0), 3)
    assert noisy.penalty > 10 * clear.penalty


@pytest.mark.parametrize("counts", [[1, 7, 9], [2, 1, 1], [1, 1, 1], [0, 5, 5]])
def test_classes_of_very_few_images_can_be_solved(counts):
    features, labels = clusters(counts)
    solved = solve_head(features, labels, 3)
    assert solved.probabilities.isfinite().all() and (solved.probabilities >= 0).all()
    assert solved.weight.isfinite().all() and solved.weight.shape == (3, 20)


def test_fewer_images_than_folds_are_cross_validated_too():
    features, labels = clusters([2, 2], num_classes=2, spread=0.01)
    assert solve_head(features, labels, 2).penalty < 1e-3


def test_features_that_are_all_the_same_give_the_share_of_each_class():
    labels = torch.tensor([0] * 30 + [1] * 10)
    solved = solve_head(torch.ones(40, 5), labels, 2)
    shares = (torch.ones(5) @ solved.weight.T + solved.bias).softmax(dim=0)
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.25]), atol=1e-3, rtol=0)


def test_weights_of_classes_move_the_border():
    features, labels = clusters([200, 20], num_classes=2, spread=4.0)
    plain = solve_head(features, labels, 2)
    weighted = solve_head(features, labels, 2, weights=torch.tensor([0.55, 5.5]))

    def rare(solved):
        return ((features @ solved.weight.T + solved.bias).argmax(dim=1) == 1).float().mean()

    assert rare(weighted) > 1.3 * rare(plain)


def test_every_class_is_spread_evenly_over_the_folds():
    labels = torch.tensor([0] * 23 + [1] * 9 + [2] * 40)
    folds = module._folds(labels, torch.randperm(72))
    counts = torch.stack([torch.bincount(folds[labels == c], minlength=5) for c in range(3)])
    assert (counts.max(dim=1).values - counts.min(dim=1).values <= 1).all()
    sizes = torch.bincount(folds)
    assert sizes.max() - sizes.min() <= 1


def test_the_same_seed_gives_the_same_head_and_the_default_generator_is_left_alone():
    features, labels = clusters([30, 30, 30])
    state = torch.get_rng_state()
    first, second = (solve_head(features, labels, 3, seed=4) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.probabilities, second.probabilities)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_works_where_gradients_are_switched_off():
    features, labels = clusters([10, 10, 10])
    with torch.no_grad():
        solved = solve_head(features, labels, 3)
    loss = nn.functional.cross_entropy(features @ solved.weight.T + solved.bias, labels)
    assert loss < 1.0
