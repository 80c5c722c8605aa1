"""The widgets, driven as a browser would: a value changes, and something is shown."""

import io

import ipywidgets
import matplotlib.pyplot as plt
import pytest
import torch
from conftest import write_image
from PIL import Image

from resnet_ft import (
    ParameterError,
    Preprocessing,
    browse_dataset,
    eval_transform,
    explore_augmentation,
    index_dataset,
    make_dataloaders,
    train_transform,
)
from resnet_ft.widgets.browse import augmented_views


def png_size(image: ipywidgets.Image) -> tuple[int, int]:
    return Image.open(io.BytesIO(image.value)).size


def buttons(box: ipywidgets.Box) -> dict[str, ipywidgets.Button]:
    return {one.description: one for one in box.children if isinstance(one, ipywidgets.Button)}


def test_a_class_and_split_can_be_browsed_page_by_page(photos):
    for i in range(20):
        write_image(photos / "Train" / "red" / f"more{i}.png")
    controls, images, _ = browse_dataset(index_dataset(photos)).children
    split, class_name, page, *_ = controls.children
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


def test_back_and_next_turn_pages_and_another_split_or_class_begins_with_the_first(photos):
    for i in range(20):
        write_image(photos / "Train" / "blue" / f"more{i}.png")
        write_image(photos / "Train" / "red" / f"more{i}.png")
    controls, images, _ = browse_dataset(index_dataset(photos)).children
    split, class_name, page, *_ = controls.children
    first = images.value
    buttons(controls)["Next"].click()
    assert page.value == 2 and images.value != first
    buttons(controls)["Back"].click()
    buttons(controls)["Back"].click()  # there is nothing before the first
    assert page.value == 1 and images.value == first
    buttons(controls)["Next"].click()
    class_name.value = "red"
    assert (page.value, page.max) == (1, 3)  # where the page of before would exist as well
    buttons(controls)["Next"].click()
    split.value = "val"
    assert page.value == 1


def test_thumbnails_have_the_same_size_on_a_page_of_one_image(photos):
    controls, images, _ = browse_dataset(index_dataset(photos)).children
    nine = png_size(images)
    for path in sorted((photos / "Val/blue").iterdir())[1:]:
        path.unlink()
    controls, images, _ = browse_dataset(index_dataset(photos)).children
    controls.children[0].value = "val"
    one = png_size(images)
    assert one[0] == pytest.approx(nine[0] / 3, rel=0.15)  # of three columns
    assert images.layout.align_self == "flex-start"  # a box does not stretch it


def test_the_whole_name_stands_below_where_the_title_is_a_part_of_it(photos):
    name = "116570827_e9c126745d <of an ant>.png"
    write_image(photos / "Train" / "blue" / name)
    _, _, names = browse_dataset(index_dataset(photos)).children
    assert names.value == "<small>116570827_e9c126745d &lt;of an ant&gt;.png</small>"


def test_browsing_skips_unreadable_files(photos):
    for path in (photos / "Val" / "blue").iterdir():
        path.write_bytes(b"no image")
    controls, images, _ = browse_dataset(index_dataset(photos)).children
    controls.children[0].value = "val"
    assert png_size(images)[0] > 10


def test_the_strength_of_augmentation_can_be_changed(photos):
    path = next((photos / "Train" / "red").iterdir())
    bar, images, _ = explore_augmentation(path, image_size=16).children
    chosen, another = bar.children
    assert chosen.value == "medium" and another.disabled
    before = images.value
    chosen.value = "strong"
    assert images.value != before
    chosen.value = "medium"
    assert png_size(images) == Image.open(io.BytesIO(before)).size


def test_another_image_is_a_click_away(photos):
    train = make_dataloaders(photos, image_size=16, num_workers=0)["train"].dataset
    bar, images, name = explore_augmentation(train, index=2, image_size=16).children
    assert name.value == "<b>blue</b> <code>2.png</code>"
    seen = {name.value}
    for _ in train.samples:
        before = images.value
        buttons(bar)["Another image"].click()
        assert images.value != before or name.value in seen
        seen.add(name.value)
    assert len(seen) == len(train) == 17
    with pytest.raises(ParameterError, match="index=17 should be from 0 to 16"):
        explore_augmentation(train, index=17)


def test_the_explorer_shows_the_crops_of_training(photos):
    """The same seed, epoch and image give the same pixels as in `train[epoch, index]`."""
    wanted = Preprocessing(16, (0.5,) * 3, (0.5,) * 3)
    transforms = {
        "train": train_transform(wanted, strength="strong"),
        "val": eval_transform(wanted),
    }
    loaders = make_dataloaders(photos, num_workers=0, **transforms, seed=7)
    train = loaders["train"].dataset
    for index in (0, 11):
        views = augmented_views(train, index, wanted, strength="strong")
        for epoch, view in enumerate(views):
            assert torch.equal(view, train[epoch, index][0])
    lighter = augmented_views(train, 0, wanted, strength="light")
    assert not torch.equal(lighter[0], train[0, 0][0])
