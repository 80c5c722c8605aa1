import os
import shutil
import tempfile
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import write_image
from PIL import Image

from resnet_ft import DatasetError, audit_dataset, index_dataset, make_dataloaders
from resnet_ft.data.folders import PathArray, find_images


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


@pytest.mark.parametrize(
    "name",
    ["a.ppm", "a.PGM", "a.jp2", "a.tga", "IMG 0001", "scan.0001", "St. Bernard 3", "a.jpg?w=9"],
)
def test_what_pillow_opens_is_an_image(tmp_path, name):
    extension = os.path.splitext(name)[1].lower()
    file_format = Image.registered_extensions().get(extension, "JPEG")
    Image.new("L", (8, 8)).save(tmp_path / name, file_format)
    assert list(find_images(tmp_path)) == [tmp_path / name]


def test_other_files_are_no_images_whatever_is_in_them(tmp_path):
    for name in ("README", "notes.txt", "data.h5", "photo.jpg_original", "raw.nef", "film.mpg"):
        (tmp_path / name).write_bytes(b"II*\0" + bytes(99) if "." in name else b"About the data")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    (tmp_path / "gone").symlink_to("nowhere")
    assert not list(find_images(tmp_path))


@contextmanager
def nobody():
    """Without the rights of root, whom no permission stops."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that everybody may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("place", [".", "Val", "Train/cat", "Train/cat/more"])
def test_a_folder_that_cannot_be_read_is_named_by_every_listing(open_folder, place):
    for path in ("Train/cat/1", "Train/cat/more/2", "Train/dog/1", "Val/cat/1", "Val/dog/1"):
        write_image(open_folder / f"{path}.png")
    message = rf"{(open_folder / place).as_posix()} cannot be listed.*Permission denied"
    (open_folder / place).chmod(0)
    try:
        for listing in (
            index_dataset,
            make_dataloaders,
            audit_dataset,
            lambda folder: list(find_images(folder)),
        ):
            with nobody(), pytest.raises(DatasetError, match=message):
                listing(open_folder)
        if place == ".":
            with nobody(), pytest.raises(DatasetError, match="you may not look at it"):
                index_dataset(open_folder / "Train")
    finally:
        (open_folder / place).chmod(0o755)
