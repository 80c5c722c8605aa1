"""Processes that decode photographs are killed at random moments."""

import multiprocessing
import random
import time

import numpy as np
import pytest
from conftest import write_image

from resnet_ft.data.cache import DecodedImages, decode_once

SIDE = 96
KILLS = 20


@pytest.mark.slow
@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="kills forked processes"
)
def test_whenever_it_is_killed_the_next_call_completes_the_same_cache(tmp_path):
    paths = [write_image(tmp_path / f"{i}.jpg", size=(500, 375)) for i in range(160)]
    expected = list(DecodedImages(paths, SIDE))
    started = time.perf_counter()
    decode_once(paths, SIDE, cache_dir=tmp_path / "undisturbed")
    seconds = time.perf_counter() - started
    chance, cut_short = random.Random(0), 0
    for kill in range(KILLS):
        cache_dir = tmp_path / f"cache-{kill}"
        workers = {"num_workers": 2 if kill % 4 == 0 else 0, "cache_dir": cache_dir}
        process = multiprocessing.get_context("fork").Process(
            target=decode_once, args=(paths, SIDE), kwargs=workers
        )
        process.start()
        process.join(chance.uniform(0, seconds))
        process.kill()
        process.join()
        stored = sum(file.stat().st_size for file in cache_dir.rglob("*.pixels"))
        cut_short += 0 < stored < sum(image.nbytes for image in expected)
        images, reasons = decode_once(paths, SIDE, cache_dir=cache_dir)
        assert reasons == {}
        for image, whole in zip(images, expected, strict=True):
            assert np.array_equal(image, whole)
    assert cut_short >= KILLS // 2  # or else the test would have tried little
