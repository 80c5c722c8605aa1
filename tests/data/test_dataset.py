from pathlib import Path

import pytest
import torch
from conftest import write_image

from resnet_ft import ImageDataset, ImageError, train_transform
from resnet_ft.data.dataset import EpochBatchSampler


@pytest.fixture
def dataset(tmp_path):
    images = [write_image(tmp_path / f"{i}.png") for i in range(5)]
    return ImageDataset(images, [0, 1, 0, 1, 0], ["a", "b"], train_transform(16), seed=3)


def test_augmentation_depends_on_seed_epoch_and_index_alone(dataset):
    first = dataset[2, 1][0]
    torch.rand(17)
    _ = dataset[0]
    assert torch.equal(dataset[2, 1][0], first)
    assert torch.equal(dataset[0, 1][0], dataset[1][0])
    assert not torch.equal(dataset[3, 1][0], first)
    other_seed = ImageDataset(dataset.images, dataset.labels, ["a", "b"], dataset.transform, seed=4)
    assert not torch.equal(other_seed[2, 1][0], first)


def test_reading_a_sample_leaves_the_generator_as_it_was(dataset):
    before = torch.get_rng_state()
    _ = dataset[1, 1]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_that_fails_later_is_an_image_error_and_keeps_the_generator(dataset):
    Path(dataset.samples[1][0]).write_bytes(b"")
    before = torch.get_rng_state()
    with pytest.raises(ImageError, match=r"1\.png.*empty"):
        dataset[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_names_are_those_of_torchvision(dataset):
    assert dataset.classes == ["a", "b"]
    assert dataset.targets == [0, 1, 0, 1, 0]
    assert len(dataset) == len(dataset.samples) == 5


def test_every_epoch_has_each_index_once_in_an_order_of_its_own():
    sampler = EpochBatchSampler(10, 4, shuffle=True)
    epochs = [[key for batch in sampler for key in batch] for _ in range(3)]
    for number, keys in enumerate(epochs):
        assert {key.epoch for key in keys} == {number}
        assert sorted(key.index for key in keys) == list(range(10))
    assert len({tuple(key.index for key in keys) for keys in epochs}) == 3


def test_an_epoch_can_be_repeated():
    sampler = EpochBatchSampler(10, 4, shuffle=True)
    first = list(sampler)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_without_shuffling_every_pass_is_epoch_zero_in_order():
    sampler = EpochBatchSampler(3, 2)
    for _ in range(2):
        assert [[key[:2] for key in batch] for batch in sampler] == [[(0, 0), (0, 1)], [(0, 2)]]


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)
def test_a_last_batch_of_one_joins_the_batch_before(count, size, lengths):
    sampler = EpochBatchSampler(count, size, shuffle=True, join_last=True)
    assert [len(batch) for batch in sampler] == lengths
    assert len(sampler) == len(lengths)
