"""What a data set costs in memory, once and in each worker."""

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image

from resnet_ft import ImageDataset, train_transform
from resnet_ft.data.dataset import EpochBatchSampler
from resnet_ft.data.decoded import DecodedImages
from resnet_ft.data.exchange import ImageLoader
from resnet_ft.data.filling import decode_once

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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_grows_through_an_epoch(tmp_path):
    count = 40_000
    images, _ = decode_once([write_image(tmp_path / "a.png")], 32, cache_dir=tmp_path / "cache")
    records = np.repeat(images.take(np.array([0]))._records, count)
    paths = (str(tmp_path / f"{i}" / "a.png") for i in range(count))
    many = DecodedImages(paths, 32, pixels=images._pixels, records=records)
    dataset = ImageDataset(many, np.zeros(count), ["a", "b"], train_transform(32))
    loader = ImageLoader(
        dataset,
        batch_sampler=EpochBatchSampler(count, 64, shuffle=True, slots=3),
        num_workers=1,
        persistent_workers=True,
    )
    epoch = super(ImageLoader, loader).__iter__()
    worker = epoch._workers[0].pid
    sizes = [own_memory(worker) for number, _ in enumerate(epoch) if number in (60, 600)]
    assert len(sizes) == 2
    assert sizes[1] < sizes[0] + 2e6  # a list of paths alone would be copied with 4 MB


def own_memory(pid: int) -> int:
    """Bytes of a process that it shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
