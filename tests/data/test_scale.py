"""What a data set of many files costs, from the folder to the workers of its loaders."""

import gc
import multiprocessing
import os
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from conftest import write_image

from resnet_ft import eval_transform, index_dataset, make_dataloaders
from resnet_ft.data.batches import EpochBatchSampler

COUNT = 100_000  # a tenth of the million that `make bench-speed` measures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A hundred classes with 800 and 200 names of one file each."""
    folder = tmp_path_factory.mktemp("many") / "images"
    for split, count in (("Train", COUNT // 125), ("Val", COUNT // 500)):
        for number in range(100):
            images = folder / split / f"class_{number:03d}"
            first = write_image(images / "image_0000000.png", size=(8, 8))
            for i in range(1, count):
                os.link(first, images / f"image_{i:07d}.png")
    return folder


def test_an_index_takes_the_memory_of_its_paths(folder):
    index_dataset(folder)  # what is loaded when it is first used does not count
    tracemalloc.start()
    index = index_dataset(folder)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    characters = sum(len(path) for path in index.images)
    assert len(index.images) == COUNT
    assert size < characters + 12 * COUNT
    assert peak < 20e6


def test_an_index_is_soon_built(folder):
    start = time.process_time()  # of this process alone, however busy the machine is
    index_dataset(folder)
    assert time.process_time() - start < 3


def test_the_order_of_an_epoch_needs_nothing_but_seed_and_number():
    epochs = []
    for _ in range(2):  # as in the run that was interrupted and when it resumes
        sampler = EpochBatchSampler(COUNT, 64, shuffle=True, seed=1)
        sampler.set_epoch(3)
        epochs.append([key.index for batch in sampler for key in batch])
    assert sorted(epochs[0]) == list(range(COUNT))
    assert epochs[0] == epochs[1]


class Collecting:
    """The evaluation transform, with one full garbage collection in the middle of an epoch.

    By itself, it comes after more batches than this epoch has.
    """

    def __init__(self):
        self.transform = eval_transform(8)
        self.count = 0

    def __call__(self, image):
        self.count += 1
        if self.count == COUNT // 5:
            gc.collect()
        return self.transform(image)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_grows_through_an_epoch(folder, tmp_path):
    loaders = make_dataloaders(
        folder, image_size=8, batch_size=64, train=Collecting(), num_workers=2, cache_dir=tmp_path
    )
    loader, sizes = loaders["train"], []
    for number, _ in enumerate(loader, start=1):
        if number in (10, len(loader)):
            sizes.append(max(own_memory(one.pid) for one in multiprocessing.active_children()))
    assert len(sizes) == 2
    assert sizes[1] < sizes[0] + 2e6  # a list of paths alone would be copied with 8 MB
    assert loader.dataset.fingerprint == index_dataset(folder).fingerprint()


def own_memory(pid: int) -> int:
    """Bytes of a process: its share of those that are no file's, as the cache is."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("Pss_Anon:"))
    return 1024 * int(line.split()[1])
