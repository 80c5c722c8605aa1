"""The widgets, driven as a browser would: a value changes, and something is shown."""

import io
from datetime import UTC, datetime

import ipywidgets
import matplotlib.pyplot as plt
import pytest
from conftest import write_image
from PIL import Image
from torch import nn

from resnet_ft import (
    Predictor,
    browse_dataset,
    eval_transform,
    explore_augmentation,
    index_dataset,
    upload_and_predict,
)
from resnet_ft.widgets.upload import _files


def png_size(image: ipywidgets.Image) -> tuple[int, int]:
    return Image.open(io.BytesIO(image.value)).size


def test_a_class_and_split_can_be_browsed_page_by_page(photos):
    for i in range(20):
        write_image(photos / "Train" / "red" / f"more{i}.png")
    controls, images = browse_dataset(index_dataset(photos)).children
    split, class_name, page = controls.children
    assert (split.value, class_name.value, page.value, page.max) == ("train", "blue", 1, 1)
    first = images.value
    class_name.value = "red"
    assert images.value != first
    assert page.max == 3  # 28 images, twelve per page
    second = images.value
    page.value = 3
    assert images.value != second
    split.value = "val"  # three images: back to the only page
    assert (page.value, page.max) == (1, 1)
    assert png_size(images)[0] > 100
    assert not plt.get_fignums()


def test_browsing_skips_unreadable_files(photos):
    for path in (photos / "Val" / "blue").iterdir():
        path.write_bytes(b"no image")
    controls, images = browse_dataset(index_dataset(photos)).children
    controls.children[0].value = "val"
    assert png_size(images)[0] > 10


def test_the_strength_of_augmentation_can_be_changed(photos):
    path = next((photos / "Train" / "red").iterdir())
    chosen, images = explore_augmentation(path, image_size=16).children
    assert chosen.value == "medium"
    before = images.value
    chosen.value = "strong"
    assert images.value != before
    chosen.value = "medium"
    assert png_size(images) == Image.open(io.BytesIO(before)).size


class Colour(nn.Module):
    def forward(self, images):
        return 5 * images.mean(dim=(2, 3))


@pytest.fixture
def predictor():
    return Predictor(Colour(), ["red", "green", "blue"], eval_transform(16))


def test_uploads_are_understood_in_both_versions_of_ipywidgets():
    version_7 = {"a.png": {"metadata": {"name": "a.png"}, "content": b"one"}}
    version_8 = ({"name": "a.png", "content": memoryview(b"one")},)
    assert list(_files(version_7)) == list(_files(version_8)) == [("a.png", b"one")]


def uploaded(name: str, content: bytes) -> dict | tuple:
    """The value that FileUpload of the installed version takes for a file."""
    if ipywidgets.__version__.startswith("7."):
        return {name: {"metadata": {"name": name}, "content": content}}
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    return ({**file, "last_modified": datetime.now(UTC)},)


def test_what_is_dropped_is_predicted(predictor, tmp_path):
    upload, results = upload_and_predict(predictor).children
    content = write_image(tmp_path / "a.png", colour=(20, 20, 220)).read_bytes()
    upload.set_trait("value", uploaded("a.png", content))
    name, shown = results.children[0].children
    assert "a.png" in name.value
    assert png_size(shown)[0] > 100


def test_files_can_be_dropped_on_the_upload_button(predictor, capsys):
    upload, _ = upload_and_predict(predictor).children
    assert "resnet-ft-drop" in upload._dom_classes  # what the script looks for
    assert "Javascript object" in capsys.readouterr().out  # display() outside of a notebook


def test_an_upload_that_cannot_be_read_is_named(predictor):
    upload, results = upload_and_predict(predictor).children
    upload.set_trait("value", uploaded("<b>.jpg", b"no image"))
    assert "&lt;b&gt;.jpg" in results.children[0].value
    assert "not an image" in results.children[0].value
