"""Rare classes: weights for the loss, and epochs in which every class comes equally often."""

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import write_image
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft import ParameterError, make_dataloaders, train_model
from resnet_ft.data.mixing import balanced_loader, class_weights

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


def test_a_network_trains_on_balanced_epochs(skewed, small_network):
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
