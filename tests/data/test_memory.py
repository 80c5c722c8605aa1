"""What a data set costs in memory."""

import tracemalloc

import numpy as np

from resnet_ft import ImageDataset, train_transform
from resnet_ft.data.batches import EpochBatchSampler

MILLION = 1_000_000


def test_a_million_files_cost_less_than_200_mb():
    names = (
        f"/data/photographs/Train/class_{i % 100:03d}/image_{i:07d}.jpg" for i in range(MILLION)
    )
    tracemalloc.start()
    dataset = ImageDataset(names, np.zeros(MILLION), ["a", "b"], train_transform(32))
    sampler = EpochBatchSampler(MILLION, 32, shuffle=True)
    next(iter(sampler))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert dataset.images.paths[MILLION - 1].endswith("image_0999999.jpg")
    assert peak < 200e6
