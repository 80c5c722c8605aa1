import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_image

from resnet_ft import ImageDataset, ImageError, make_dataloaders, train_transform
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


def drawn_from(draw, dataset):
    """The data set with a transform that draws from one generator."""
    return ImageDataset(
        dataset.images, dataset.labels, dataset.classes, lambda image: torch.tensor(draw())
    )


DRAWS = {
    "torch": lambda: float(torch.rand(())),
    "random": random.random,
    "random's normal": lambda: random.gauss(0, 1),  # keeps a second number for the next call
    "numpy": np.random.rand,
    "numpy's normal": np.random.randn,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_whatever_a_transform_draws_from_depends_on_seed_epoch_and_index_alone(dataset, draw):
    samples = drawn_from(draw, dataset)
    first = float(samples[2, 1][0])
    draw()
    _ = samples[0]
    assert float(samples[2, 1][0]) == first
    assert len({float(samples[epoch, i][0]) for epoch in range(3) for i in range(5)}) == 15


@pytest.mark.parametrize("draw", list(DRAWS.values())[:4], ids=list(DRAWS)[:4])
def test_reading_a_sample_leaves_the_generators_as_they_were(dataset, draw):
    samples = drawn_from(draw, dataset)
    drawn = []
    for reads in (False, True):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        draw()
        if reads:
            _ = samples[1, 1]
        drawn.append([draw(), draw()])
    assert drawn[0] == drawn[1]


@pytest.mark.processes
def test_a_transform_that_draws_from_numpy_gives_the_same_with_any_number_of_workers(photos):
    batches = []
    for workers in (0, 2):
        loaders = make_dataloaders(
            photos, image_size=16, batch_size=4, train=_noisy, num_workers=workers
        )
        batches.append(torch.cat([images for images, _ in loaders["train"]]))
    assert torch.equal(*batches)


def _noisy(image):
    pixels = np.asarray(image.resize((16, 16))) + random.choice([0, 50])
    return torch.tensor(pixels + np.random.normal(0, 9, (16, 16, 3))).permute(2, 0, 1).float()


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


@pytest.mark.slow
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
