import tracemalloc

import pytest

from resnet_ft.data.folders import PathArray


def test_a_path_array_keeps_paths_of_every_kind():
    paths = ["a.png", "", "ü/日本 語.jpg", "new\nline", "surrogate\udcff"]
    array = PathArray(paths)
    assert list(array) == paths
    assert array[-1] == paths[-1]
    assert list(array.take([2, 0])) == [paths[2], paths[0]]


def test_a_path_out_of_range_is_an_index_error():
    with pytest.raises(IndexError, match="3 is not one of 2"):
        PathArray(["a", "b"])[3]


def test_a_path_array_takes_little_more_memory_than_its_characters():
    tracemalloc.start()
    paths = PathArray(f"/data/Train/class_{i % 10}/image_{i:08d}.jpg" for i in range(100_000))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    characters = sum(len(path) for path in paths)
    assert size < characters + 8 * 100_000 + 100_000
