"""Mixed batches against the papers' definitions; rare classes that weigh or come more often."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import write_image
from scipy import stats
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft import ParameterError, make_dataloaders, train_model
from resnet_ft.data.mixing import MixedLoader, balanced_loader, class_weights


def tensors(count, classes=None):
    """Images of noise, each of its own class unless there are fewer classes."""
    images = torch.randn(count, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, torch.arange(count) % (classes or count))


def plain(count=6, batch_size=6, **options):
    return DataLoader(tensors(count), batch_size=batch_size, **options)


def shares(labels):
    """Of what each image is mixed, where each has its own class: (own share, neighbour's)."""
    rows = torch.arange(len(labels))
    return labels[rows, rows], labels[rows, rows - 1]


def same(batches, others):
    pairs = zip(sum(batches, ()), sum(others, ()), strict=True)
    return all(torch.equal(tensor, other) for tensor, other in pairs)


def test_mixup_adds_images_and_labels_in_the_same_shares():
    ((images, _),) = plain()
    for seed in range(5):
        ((mixed, labels),) = MixedLoader(plain(), 6, "mixup", alpha=1.0, seed=seed)
        own, other = shares(labels)
        assert torch.allclose(own + other, torch.ones(6)) and own.unique().numel() == 1
        expected = own[0] * images + other[0] * images.roll(1, 0)
        assert torch.allclose(mixed, expected, atol=1e-6)


def test_cutmix_labels_are_the_shares_of_the_pixels():
    ((images, _),) = plain()
    for seed in range(5):
        ((mixed, labels),) = MixedLoader(plain(), 6, "cutmix", seed=seed)
        own, other = shares(labels)
        is_own, is_other = mixed == images, mixed == images.roll(1, 0)
        assert torch.equal(is_own, ~is_other)
        assert torch.allclose(is_own.float().mean(dim=(1, 2, 3)), own)
        assert torch.allclose(own + other, torch.ones(6))
        pasted = is_other[0, 0]
        rectangle = pasted.any(dim=1)[:, None] & pasted.any(dim=0)
        assert torch.equal(pasted, rectangle)


@pytest.mark.parametrize(("alpha", "expected"), [(None, 0.2), (0.2, 0.2), (1.0, 1.0), (4.0, 4.0)])
def test_mixup_draws_its_shares_from_the_beta_distribution(alpha, expected):
    loader = MixedLoader(plain(900, 3), 900, "mixup", alpha=alpha)
    drawn = [row.max().item() for _, labels in loader for row in labels[:1]]
    folded = stats.beta(expected, expected)  # the larger of the two shares
    assert stats.kstest(drawn, lambda share: 2 * folded.cdf(share) - 1).pvalue > 0.01
    others = {0.2: 1.0, 1.0: 0.2, 4.0: 1.0}
    wrong = stats.beta(others[expected], others[expected])
    assert stats.kstest(drawn, lambda share: 2 * wrong.cdf(share) - 1).pvalue < 1e-6


def test_both_is_either_batch_by_batch():
    source = plain(200, 2)
    pairs = zip(source, MixedLoader(source, 200), strict=True)
    pasted = [torch.isin(mixed, images).all().item() for (images, _), (mixed, _) in pairs]
    assert 30 < sum(pasted) < 70


def test_the_same_seed_and_epoch_give_the_same_batches_and_no_other(photos):
    def batches(seed, epoch, workers=0):
        loader = make_dataloaders(photos, image_size=8, batch_size=4, num_workers=workers)["train"]
        loader.batch_sampler.set_epoch(epoch)
        return list(MixedLoader(loader, 2, seed=seed))

    first = batches(0, 1)
    torch.rand(3)
    assert same(batches(0, 1), first)
    assert same(batches(0, 1, workers=1), first)
    assert not same(batches(1, 1), first)
    assert not same(batches(0, 2), first)


def test_mixing_itself_changes_from_epoch_to_epoch_and_can_be_repeated():
    loader = MixedLoader(plain(), 6, "mixup", alpha=1.0)  # the images come in the same order
    first, second = list(loader), list(loader)
    assert not same(first, second)
    loader.set_epoch(0)
    assert same(list(loader), first)
    assert same(list(loader), second)


def test_the_epoch_is_that_of_the_samplers_where_they_count(photos):
    loader = make_dataloaders(photos, image_size=8, num_workers=0)["train"]
    mixed = MixedLoader(loader, 2)
    epochs = [list(mixed) for _ in range(3)]
    loader.batch_sampler.set_epoch(1)
    assert same(list(mixed), epochs[1])
    assert same(list(mixed), epochs[2])


def test_every_batch_of_an_epoch_is_mixed_in_its_own_way():
    batches = list(MixedLoader(plain(12, 2), 12, "mixup", alpha=1.0))
    assert len({round(labels.max().item(), 5) for _, labels in batches}) == len(batches) == 6


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixing_leaves_the_generator_and_what_others_hold_as_they_were(mix):
    data, before = tensors(6), torch.get_rng_state()
    held = data.tensors[0].clone()
    itself = DataLoader(data, 6, collate_fn=lambda _: data.tensors, generator=torch.Generator())
    ((mixed, _),) = MixedLoader(itself, 6, mix, alpha=1.0)
    assert not torch.equal(mixed, held)
    assert torch.equal(data.tensors[0], held)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_single_image_is_mixed_with_itself():
    ((images, _),) = plain(1, 1)
    for mix in ("mixup", "cutmix"):
        ((mixed, labels),) = MixedLoader(plain(1, 1), 3, mix)
        assert torch.allclose(mixed, images, atol=1e-6)
        assert torch.allclose(labels, torch.tensor([[1.0, 0.0, 0.0]]))


def test_a_model_trains_on_mixed_batches_and_the_run_can_be_repeated(photos, small_network):
    runs = []
    for noise in (0, 5):
        model = copy.deepcopy(small_network)
        loaders = make_dataloaders(photos, image_size=12, batch_size=5, num_workers=0)
        loaders["train"] = MixedLoader(loaders["train"], 2)
        model[5].p = 0.0
        torch.rand(noise)  # whatever else draws
        _, history = train_model(model, loaders, num_epochs=3)
        runs.append((history, model.state_dict()))
    (first, weights), (second, others) = runs
    assert first["train_loss"].tolist() == second["train_loss"].tolist()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    plain_loaders = make_dataloaders(photos, image_size=12, batch_size=5, num_workers=0)
    _, unmixed = train_model(copy.deepcopy(small_network), plain_loaders, num_epochs=1)
    assert unmixed["train_loss"][0] != first["train_loss"][0]


def test_mixed_labels_may_be_weighted_by_class(photos, small_network):
    loaders = make_dataloaders(photos, image_size=12, batch_size=5, num_workers=0)
    loaders["train"] = MixedLoader(loaders["train"], 2, "mixup")
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]), label_smoothing=0.1)
    _, history = train_model(small_network, loaders, criterion, num_epochs=1)
    assert history["train_loss"].notna().all()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"mix": "mix-up"}, "mixup, cutmix, both"), ({"alpha": 0.0}, "alpha=0"), ({}, "should be 2")],
)
def test_what_cannot_be_mixed_is_named(photos, wrong, named):
    loader = make_dataloaders(photos, image_size=8, num_workers=0)["train"]
    with pytest.raises(ParameterError, match=named):
        MixedLoader(loader, 2 if wrong else 1, **wrong)


LABELS = np.array([2] * 2 + [0] * 11 + [1] * 4)


@pytest.fixture
def skewed(tmp_path):
    """11 red, 4 blue and 2 green training images, and one of each for validation."""
    counts = {"red": 11, "blue": 4, "green": 2}
    colours = {"red": (200, 60, 40), "blue": (40, 60, 200), "green": (40, 200, 60)}
    for name, count in counts.items():
        for i in range(count):
            write_image(tmp_path / "data" / "Train" / name / f"{i}.png", colour=colours[name])
        write_image(tmp_path / "data" / "Val" / name / "0.png", colour=colours[name])
    return tmp_path / "data"


def test_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    for labels in (LABELS, LABELS.tolist(), torch.from_numpy(LABELS)):
        weights = class_weights(labels, 3)
        assert weights.dtype == torch.float32
        assert weights.tolist() == pytest.approx(expected.tolist())
    assert weights[torch.from_numpy(LABELS)].mean().item() == pytest.approx(1)


def test_a_class_without_images_weighs_nothing_and_changes_no_other():
    weights = class_weights([0, 0, 0, 2], 4)
    assert weights.tolist() == pytest.approx([4 / (2 * 3), 0, 4 / 2, 0])


@pytest.mark.parametrize("labels", [[], [0, 3], [-1, 0]])
def test_labels_that_are_none_of_the_classes_are_refused(labels):
    with pytest.raises(ParameterError, match="from 0 to 2"):
        class_weights(labels, 3)


def test_weights_go_into_the_loss(skewed, small_network):
    loaders = make_dataloaders(skewed, image_size=12, num_workers=0)
    small_network[6] = nn.Linear(8, 3)
    weights = class_weights(loaders["train"].dataset.targets, 3)
    _, history = train_model(
        small_network, loaders, nn.CrossEntropyLoss(weight=weights), num_epochs=1
    )
    assert history["train_loss"].notna().all()


@pytest.fixture
def balanced(skewed):
    loader = make_dataloaders(skewed, image_size=12, batch_size=4, num_workers=0)["train"]
    return balanced_loader(loader)


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return [key for batch in sampler for key in batch]


def test_every_class_comes_equally_often_and_every_image_of_it_too(balanced):
    labels = balanced.dataset.labels
    for epoch in range(4):
        drawn = [key.index for key in epoch_of(balanced.batch_sampler, epoch)]
        assert len(drawn) == 17
        assert sorted(Counter(labels[drawn]).values()) == [5, 6, 6]  # 17 = 3 * 5 + 2
        for label in range(3):
            members = np.flatnonzero(labels == label)
            of_class = [index for index in drawn if labels[index] == label]
            for start in range(0, len(of_class), len(members)):  # each round has each image once
                part = of_class[start : start + len(members)]
                assert len(set(part)) == len(part)


def test_classes_and_images_are_left_out_in_turn_by_chance(balanced):
    labels, sampler = balanced.dataset.labels, balanced.batch_sampler
    epochs = [[key.index for key in epoch_of(sampler, epoch)] for epoch in range(12)]
    assert {index for drawn in epochs for index in drawn} == set(range(17))
    rarest = {Counter(labels[drawn]).most_common()[-1][0] for drawn in epochs}
    assert rarest == {0, 1, 2}
    assert len({labels[drawn[0]] for drawn in epochs}) > 1


def test_an_image_that_comes_again_is_varied_anew(balanced):
    keys = [key for epoch in (0, 1) for key in epoch_of(balanced.batch_sampler, epoch)]
    assert len({(key.epoch, key.index) for key in keys}) == len(keys) == 34
    often = Counter(key.index for key in keys).most_common(1)[0][0]
    views = [balanced.dataset[key.epoch, key.index][0] for key in keys if key.index == often]
    assert len({view.numpy().tobytes() for view in views}) == len(views) >= 5


def test_what_comes_first_is_seen_as_without_balancing(balanced):
    firsts = {}
    for key in epoch_of(balanced.batch_sampler, 5):
        firsts.setdefault(key.index, key.epoch)
    assert set(firsts.values()) == {5}


def test_an_epoch_depends_on_its_number_alone(balanced):
    sampler = balanced.batch_sampler
    first, second = list(sampler), list(sampler)
    assert first != second
    torch.rand(3)
    sampler.set_epoch(0)
    assert [list(sampler), list(sampler)] == [first, second]


def test_the_seed_is_that_of_the_loader(skewed):
    def first_epoch(seed):
        plain = make_dataloaders(skewed, image_size=8, num_workers=0, seed=seed)["train"]
        return list(balanced_loader(plain).batch_sampler)

    assert first_epoch(3) == first_epoch(3) != first_epoch(4)


def test_batches_are_the_same_with_and_without_workers(skewed):
    runs = []
    for workers in (0, 2):
        plain = make_dataloaders(skewed, image_size=8, batch_size=4, num_workers=workers, seed=3)
        loader = balanced_loader(plain["train"])
        assert loader.num_workers == workers
        runs.append([(images.clone(), labels) for _ in range(2) for images, labels in loader])
    for (images, labels), (others, other_labels) in zip(*runs, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)
    keys = epoch_of(loader.batch_sampler, 0)
    expected = torch.stack([loader.dataset[key.epoch, key.index][0] for key in keys])
    assert torch.equal(torch.cat([images for images, _ in runs[0][:4]]), expected)


def test_a_last_batch_of_one_joins_as_before(skewed):
    plain = make_dataloaders(skewed, image_size=8, batch_size=4, num_workers=0)["train"]
    loader = balanced_loader(plain)
    assert [len(labels) for _, labels in loader] == [len(labels) for _, labels in plain]
    assert [len(labels) for _, labels in loader] == [4, 4, 4, 5]  # 17 = 4 * 4 + 1


def test_a_model_trains_on_balanced_epochs(skewed, small_network):
    loaders = make_dataloaders(skewed, image_size=12, batch_size=5, num_workers=0)
    loaders["train"] = balanced_loader(loaders["train"])
    small_network[6] = nn.Linear(8, 3)
    _, history = train_model(small_network, loaders, num_epochs=2)
    assert history["train_loss"].notna().all()


def test_other_loaders_are_refused(photos):
    loaders = make_dataloaders(photos, image_size=8, num_workers=0)
    own = DataLoader(TensorDataset(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])))
    for loader in (loaders["val"], own):
        with pytest.raises(ParameterError, match='dataloaders\\["train"\\]'):
            balanced_loader(loader)
