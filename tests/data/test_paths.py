import tracemalloc

import pytest

from resnet_ft.data.folders import PathArray


def test_paths_of_every_kind_are_kept():
    paths = ["a.png", "", "ü/日本 語.jpg", "new\nline", "surrogate\udcff"]
    kept = PathArray(paths)
    assert list(kept) == paths
    assert kept[-1] == paths[-1]
    assert list(kept.take([2, 0])) == [paths[2], paths[0]]


def test_a_path_that_there_is_not_is_an_index_error():
    with pytest.raises(IndexError, match="3 is not one of 2"):
        PathArray(["a", "b"])[3]


def test_paths_take_little_more_memory_than_their_characters():
    tracemalloc.start()
    paths = PathArray(f"/data/Train/class_{i % 10}/image_{i:08d}.jpg" for i in range(100_000))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    characters = sum(len(path) for path in paths)
    assert size < characters + 8 * 100_000 + 100_000
