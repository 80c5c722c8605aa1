import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_image
from matplotlib.colors import to_hex
from PIL import Image

from resnet_ft import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ParameterError,
    Predictions,
    evaluate,
    imshow,
    index_dataset,
    make_dataloaders,
    plot_class_means,
    show_class,
    show_classes,
    show_images,
    show_label_errors,
    show_mistakes,
    show_pairs,
    visualize_model,
)
from resnet_ft.visualize.style import BLUE, RED


def shown(ax):
    return np.asarray(ax.images[0].get_array())


def titles(figure):
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def test_a_float_tensor_is_shown_without_its_normalisation():
    pixels = torch.rand(3, 5, 7)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    ax = imshow((pixels - mean) / std, "a title")
    assert np.allclose(shown(ax), pixels.permute(1, 2, 0).numpy(), atol=1e-6)
    assert ax.get_title() == "a title"


def test_another_normalisation_is_undone_too():
    pixels = torch.rand(3, 4, 4)
    ax = imshow((pixels - 0.5) / 0.25, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert np.allclose(shown(ax), pixels.permute(1, 2, 0).numpy(), atol=1e-6)


def test_whole_numbers_pil_images_and_arrays_are_shown_as_they_are():
    pixels = np.random.randint(0, 256, (4, 6, 3), dtype=np.uint8)
    for image in (torch.from_numpy(pixels).permute(2, 0, 1), Image.fromarray(pixels), pixels):
        assert np.array_equal(shown(imshow(image)), pixels)


def test_an_image_is_drawn_into_axes_that_are_given():
    _, ax = plt.subplots()
    assert imshow(torch.zeros(3, 4, 4), ax=ax) is ax
    assert len(plt.get_fignums()) == 1


def test_a_grid_has_a_cell_per_image():
    figure = show_images([torch.zeros(3, 4, 4)] * 5, list("abcde"), columns=3)
    assert titles(figure) == list("abcde")
    assert len(figure.axes) == 6
    assert sum(bool(ax.images) for ax in figure.axes) == 5


def test_a_grid_of_nothing_or_with_other_titles_is_refused():
    with pytest.raises(ParameterError, match="0 images"):
        show_images([])
    with pytest.raises(ParameterError, match="1 images to show, with 2 titles"):
        show_images([torch.zeros(3, 4, 4)], ["a", "b"])


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were():
    before = dict(plt.rcParams)
    show_images([torch.zeros(3, 4, 4)])
    assert dict(plt.rcParams) == before


def test_the_mean_of_a_class_has_the_colour_of_its_images(photos):
    (photos / "Train" / "red" / "broken.png").write_bytes(b"no image")
    blue, red = plot_class_means(index_dataset(photos)).axes
    assert np.allclose(blue.images[0].get_array().mean(axis=(0, 1)), (40, 60, 200), atol=6)
    assert blue.get_title() == "blue\n(9 of 9 images)"
    assert red.get_title() == "red\n(8 of 9 images)"


def test_a_contact_sheet_skips_unreadable_files(photos):
    (photos / "Train" / "red" / "0.png").write_bytes(b"no image")
    figure = show_class(index_dataset(photos), "red", num_images=6)
    assert sum(bool(ax.images) for ax in figure.axes) == 6
    titles = [ax.get_title() for ax in show_classes(index_dataset(photos)).axes]
    assert titles == ["blue", "red"]
    with pytest.raises(ParameterError, match="'green'"):
        show_class(index_dataset(photos), "green")


def test_a_split_without_readable_images_is_refused(photos):
    with pytest.raises(ParameterError, match="'test'"):
        plot_class_means(index_dataset(photos), split="test")


def test_copies_are_shown_side_by_side_with_class_and_split(photos):
    pairs = pd.DataFrame({"path": ["Val/red/0.png"], "other": ["Train/blue/1.png"]})
    figure = show_pairs(photos, pairs)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["Val/red\n0.png", "Train/blue\n1.png"]
    assert figure.get_suptitle() == "1 pair of copies"
    with pytest.raises(ParameterError, match="no pairs"):
        show_pairs(photos, pairs.head(0))


def test_label_errors_are_shown_with_the_suggested_label(photos):
    errors = pd.DataFrame(
        {"path": [photos / "Val/red/0.png"] * 3, "label": ["red"] * 3, "suggested": ["blue"] * 3}
    )
    figure = show_label_errors(errors, num_images=2)
    assert figure.axes[0].get_title() == "red?\nrather blue"
    assert figure.get_suptitle() == "2 of 3 labels to check"


class RedOrBlue(torch.nn.Module):
    """Distinguishes red and blue images, and expects the classes in this order."""

    def forward(self, images):
        return images.mean(dim=(2, 3))[:, [2, 0]] * 9


def test_the_model_is_shown_on_images_from_all_over_the_data_set(photos):
    loaders = make_dataloaders(photos, image_size=8, batch_size=4, num_workers=0)
    figure = visualize_model(RedOrBlue(), loaders["val"], num_images=4)
    assert [title.split("\n")[1] for title in titles(figure)] == ["is blue"] * 2 + ["is red"] * 2
    assert figure.get_suptitle() == "4 of these 4 are correct; of all 6, 100.0%"
    assert len(visualize_model(RedOrBlue(), loaders["val"], num_images=99).axes) == 6


def test_wrong_predictions_are_red(photos):
    model = RedOrBlue()
    model.classes = ["red", "blue"]  # so every prediction is wrong
    loaders = make_dataloaders(photos, image_size=8, num_workers=0)
    figure = visualize_model(model, loaders["val"], num_images=2)
    assert figure.get_suptitle() == "0 of these 2 are correct; of all 6, 0.0%"
    assert {to_hex(ax.title.get_color()).upper() for ax in figure.axes} == {RED}


class Constant(torch.nn.Module):
    """Always answers the first class."""

    def forward(self, images):
        return torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)


def marks(figure):
    return "".join(title[0] for title in titles(figure))


def test_as_many_of_the_shown_predictions_are_wrong_as_of_all(photos):
    for path in sorted((photos / "Val/red").iterdir())[1:]:
        path.unlink()  # three blue ones and a red one
    loaders = make_dataloaders(photos, image_size=8, num_workers=0)
    figure = visualize_model(Constant(), loaders["val"], num_images=4)
    assert marks(figure) == "✓✓✓✗"
    assert figure.get_suptitle() == "3 of these 4 are correct; of all 4, 75.0%"
    figure = visualize_model(Constant(), loaders["train"], num_images=4)  # 9 of 17: shuffled
    assert marks(figure) == "✓✓✗✗"
    assert figure.get_suptitle() == "2 of these 4 are correct; of all 17, 52.9%"


def test_predictions_that_were_made_before_are_shown(photos):
    loaders = make_dataloaders(photos, image_size=8, num_workers=0)
    made = evaluate(RedOrBlue(), loaders["val"])
    figure = visualize_model(Constant(), loaders["val"], predictions=made)  # which is not asked
    assert figure.get_suptitle() == "6 of these 6 are correct; of all 6, 100.0%"
    with pytest.raises(ParameterError, match="6 predictions for 17 images"):
        visualize_model(Constant(), loaders["train"], predictions=made)


def test_images_of_a_contact_sheet_stand_in_line(photos):
    write_image(photos / "Train" / "red" / "0 wide.png", size=(90, 20))
    write_image(photos / "Train" / "red" / "0 tall.png", size=(20, 90))
    axes = show_class(index_dataset(photos), "red").axes
    assert {ax.images[0].get_array().shape for ax in axes if ax.images} == {(200, 200, 3)}


def test_names_that_are_cut_keep_both_ends(photos):
    name = "116570827_e9c126745d_with_ants.png"
    write_image(photos / "Val/red" / name)
    pairs = pd.DataFrame({"path": [f"Val/red/{name}"], "other": ["Train/blue/1.png"]})
    title = show_pairs(photos, pairs).axes[0].get_title().split("\n")[1]
    assert title == "116570827…h_ants.png" and len(title) == 20


@pytest.fixture
def predictions(tmp_path):
    table = pd.DataFrame(
        {
            "path": [str(write_image(tmp_path / f"{i}.png")) for i in range(4)],
            "label": ["a", "a", "b", "b"],
            "predicted": ["a", "b", "a", "b"],
            "confidence": [0.6, 0.7, 0.9, 0.95],
        }
    )
    return Predictions(table, np.zeros((4, 2)), ["a", "b"])


def test_the_most_confident_mistakes_come_first(predictions):
    figure = show_mistakes(predictions, num_images=6)
    assert titles(figure) == ["✗ a (90.0%)\nis b", "✗ b (70.0%)\nis a"]
    assert figure.get_suptitle() == "The 2 most confident of 2 mistakes"


def test_predictions_without_paths_cannot_show_their_mistakes(predictions):
    predictions.table["path"] = None
    with pytest.raises(ParameterError, match="does not shuffle"):
        show_mistakes(predictions)


def test_large_images_are_shrunk_before_they_are_drawn():
    image = Image.new("RGB", (4000, 3000))
    figure = show_images([image])
    assert shown(figure.axes[0]).shape == (300, 400, 3)
    assert image.size == (4000, 3000)


def test_without_mistakes_the_least_confident_predictions_are_shown(predictions):
    predictions.table["predicted"] = predictions.table["label"]
    figure = show_mistakes(predictions, num_images=2)
    assert titles(figure) == ["✓ a (60.0%)\nis a", "✓ a (70.0%)\nis a"]
    assert {to_hex(ax.title.get_color()).upper() for ax in figure.axes} == {BLUE}
