import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from resnet_ft import TrainingError
from resnet_ft.features import solver as module
from resnet_ft.features.solver import solve_head
from resnet_ft.features.store import FeatureFile


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


def assert_is_scikit_learns(solved, features, labels):
    # scikit-learn minimises C * sum of losses + half the squared norm.
    strength = 1 / (solved.penalty * len(labels))
    regression = LogisticRegression(C=strength, max_iter=10_000, tol=1e-8)
    regression.fit(scaled(features).numpy(), labels.numpy())
    expected = regression.predict_proba(scaled(features).numpy())
    found = (features @ solved.weight.T + solved.bias).softmax(dim=1)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_head_is_scikit_learns_logistic_regression_of_the_same_penalty():
    features, labels = clusters([40, 30, 30])
    solved = solve_head(features, labels, 3)
    assert_is_scikit_learns(solved, features, labels)


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


def objective(features, labels, weight, bias, penalty):
    loss = nn.functional.cross_entropy(scaled(features) @ weight.T + bias, labels)
    return loss + penalty / 2 * weight.square().sum()


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 2.0])])
def test_in_small_chunks_a_pass_gives_the_loss_and_the_gradients_of_all_rows(monkeypatch, weights):
    features, labels = clusters([90, 60, 50])
    rows, penalty = torch.randperm(200)[:170], 1e-2
    torch.manual_seed(0)
    start = module._Layer(torch.randn(3, 20), torch.randn(3))
    monkeypatch.setattr(module, "_CHUNK", 4 * 23 * 7)
    monkeypatch.setattr(module, "_IN_MEMORY", 0)
    solver = module.Solver(features, labels, 3, weights)
    layer = solver.start(start)
    value = solver.objective(layer, rows, penalty)()
    same = solver.start(start)
    logits = scaled(features)[rows] @ same.weight.T + same.bias
    loss = nn.functional.cross_entropy(logits, labels[rows], weights)
    expected = loss + penalty / 2 * same.weight.square().sum()
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(layer.weight.grad, same.weight.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.bias.grad, same.bias.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_in_small_chunks_the_head_is_the_same(monkeypatch, tmp_path, dtype):
    features, labels = clusters([90, 60, 50])
    file = FeatureFile(tmp_path, "0123456789abcdef", 200)
    file.append(features.to(dtype))
    file.finish()
    stored = file.find().float()
    whole = solve_head(stored, labels, 3)
    monkeypatch.setattr(module, "_CHUNK", 4 * 23 * 7)
    monkeypatch.setattr(module, "_IN_MEMORY", 0)
    chunked = solve_head(file.find(), labels, 3)
    assert chunked.penalty == whole.penalty
    one, other = (
        objective(
            *(stored, labels, solved.weight * length, solved.bias + solved.weight @ centre),
            whole.penalty,
        )
        for solved in (whole, chunked)
        for centre in [stored.mean(dim=0)]
        for length in [(stored - centre).square().sum(dim=1).mean().sqrt()]
    )
    assert other == pytest.approx(one.item(), rel=1e-5)
    torch.testing.assert_close(chunked.probabilities, whole.probabilities, rtol=1e-3, atol=1e-3)


def test_more_images_than_the_penalty_is_chosen_from_are_solved_to_the_same_optimum(monkeypatch):
    features, labels = clusters([90, 60, 50])
    monkeypatch.setattr(module, "_ENOUGH", 60)
    solved = solve_head(features, labels, 3)
    assert_is_scikit_learns(solved, features, labels)


def test_probabilities_of_many_images_and_classes_are_in_half_precision(monkeypatch):
    features, labels = clusters([30, 30, 30])
    full = solve_head(features, labels, 3)
    monkeypatch.setattr(module, "_MOST_IN_FULL", 100)
    half = solve_head(features, labels, 3)
    assert half.probabilities.dtype == torch.float16
    assert torch.equal(half.losses, full.losses)
    torch.testing.assert_close(half.probabilities.float(), full.probabilities, rtol=0, atol=5e-4)


@pytest.mark.parametrize("wrong", [float("inf"), float("nan"), 1e30])
def test_features_that_are_not_finite_are_refused(wrong):
    features, labels = clusters([10, 10, 10])
    features[3, 5] = wrong
    with pytest.raises(TrainingError, match=r"features are not finite, or above 1e18.*notebook 02"):
        solve_head(features, labels, 3)


def test_a_loss_that_turns_into_no_number_ends_in_the_best_point_so_far():
    point, seen = torch.tensor([8.0, -3.0], requires_grad=True), []

    def objective():
        value = (point * torch.tensor([1.0, 10.0])).square().sum()
        value.backward()
        seen.append((value.item(), point.detach().clone()))
        return value.item() if len(seen) < 5 else float("nan")

    assert "not a number" in module.minimise(objective, [point])
    assert len(seen) == 5
    value, best = min(seen[:4], key=lambda one: one[0])
    assert value < seen[0][0] and torch.equal(point.detach(), best)


def test_a_line_search_that_finds_nothing_lower_ends_in_the_best_point_so_far():
    point, seen = torch.tensor([8.0, -3.0], requires_grad=True), []

    def objective():
        value = (point * torch.tensor([1.0, 10.0])).square().sum()
        (value if len(seen) < 3 else -value).backward()  # from then on, downhill leads up
        seen.append((value.item(), point.detach().clone()))
        return value.item()

    assert "before a minimum" in module.minimise(objective, [point])
    best = min(seen, key=lambda one: one[0])
    assert best[0] < seen[0][0] and torch.equal(point.detach(), best[1])
    assert len(seen) < 40  # a single line search in vain, of the 200 steps that it may take


def test_a_head_that_is_not_the_optimum_is_said_once(monkeypatch):
    features, labels = clusters([20, 20, 20])
    whole = module.Solver.objective

    def failing(self, layer, rows, penalty):
        passes, pass_over = [], whole(self, layer, rows, penalty)

        def fails_later():
            passes.append(pass_over())
            return passes[-1] if len(passes) < 4 else float("inf")

        return fails_later

    monkeypatch.setattr(module.Solver, "objective", failing)
    with pytest.warns(
        UserWarning, match="infinite or not a number while the head was solved"
    ) as said:
        solved = solve_head(features, labels, 3)
    assert len(said) == 1
    right = (features @ solved.weight.T + solved.bias).argmax(dim=1) == labels
    assert right.float().mean() > 0.7
