import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_image

from resnet_ft import ImageDataset, ImageError, train_transform
from resnet_ft.data.batches import EpochBatchSampler


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


def test_a_million_files_cost_less_than_200_mb():
    million = 1_000_000
    names = (f"/data/images/Train/class_{i % 100:03d}/image_{i:07d}.jpg" for i in range(million))
    tracemalloc.start()
    dataset = ImageDataset(names, np.zeros(million), ["a", "b"], train_transform(32))
    sampler = EpochBatchSampler(million, 32, shuffle=True)
    next(iter(sampler))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert dataset.images.paths[million - 1].endswith("image_0999999.jpg")
    assert peak < 200e6
