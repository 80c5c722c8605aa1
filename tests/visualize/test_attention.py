import numpy as np
import pytest
import torch
from conftest import write_image
from matplotlib.colors import to_hex
from torch import nn

from resnet_ft import (
    ParameterError,
    Predictions,
    eval_transform,
    evaluate,
    grad_cam,
    make_dataloaders,
    percent,
    show_attention,
    show_neighbours,
    unshuffled,
)
from resnet_ft.visualize.style import BLUE, RED


class Colours(nn.Module):
    """Sees the three colours of each place; one speaks for its class and against the others."""

    classes = ("blue", "green", "red")

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 1, bias=False), nn.Linear(3, 3, bias=False)
        self.conv.weight.data = torch.eye(3).flip(0)[..., None, None]
        self.head.weight.data = 2 * torch.eye(3) - 0.5

    def forward(self, images):
        return self.head(self.conv(images).relu().mean((2, 3)))


@pytest.fixture
def loaders(photos):
    (photos / "Val/blue/1.png").rename(photos / "Val/red/blue.png")  # a mistake
    return make_dataloaders(photos, val=eval_transform(16), train=eval_transform(16), num_workers=0)


def shown(figure):
    """Titles and pictures, row by row."""
    axes = [ax for ax in figure.axes if ax.images]
    return [ax.get_title() for ax in axes], [ax.images[0].get_array() for ax in axes]


def test_each_image_stands_beside_what_spoke_for_two_classes(loaders):
    model = Colours()
    predictions = evaluate(model, loaders["val"])
    figure = show_attention(predictions, model, eval_transform(16), num_images=4)
    titles, pictures = shown(figure)
    assert len(titles) == 12
    wrong = predictions.table.query("predicted != label").iloc[0]
    assert titles[:2] == ["✗ is\nred", f"for blue\n{percent(wrong['confidence'])}"]
    assert titles[2].startswith("for red\n")  # the label, though green is more probable
    right = predictions.table.query("predicted == label")
    least = predictions.probabilities[right["confidence"].idxmin()]
    assert titles[5].endswith(f"\n{percent(np.sort(least)[-2])}")  # the second most probable one
    assert all(title == "✓ is" for title in [one.split("\n")[0] for one in titles[3::3]])
    assert to_hex(figure.axes[0].title.get_color()).upper() == RED
    assert to_hex(figure.axes[3].title.get_color()).upper() == BLUE
    expected = "What spoke for a class: confident mistakes (1),\nuncertain images (3)"
    assert figure.get_suptitle() == expected
    for picture in pictures:
        assert picture.shape == (16, 16, 3)
        assert picture.min() >= 0 and picture.max() <= 1


def test_an_image_is_lit_where_it_spoke_for_the_class(tmp_path):
    from PIL import Image

    pixels = np.full((16, 16, 3), 128, np.uint8)
    pixels[:, 8:] = (0, 0, 255)  # blue on the right
    pixels[:, :4] = (255, 0, 0)  # red on the left, but less
    Image.fromarray(pixels).save(tmp_path / "both.png")
    for split, name in (("Train", "blue"), ("Train", "red"), ("Val", "red")):
        write_image(tmp_path / "data" / split / name / "0.png")
    (tmp_path / "data/Val/blue").mkdir()
    (tmp_path / "both.png").rename(tmp_path / "data/Val/blue/both.png")
    loaders = make_dataloaders(tmp_path / "data", val=eval_transform(16), num_workers=0)
    model = Colours()
    predictions = evaluate(model, loaders["val"])
    probabilities = np.array([[0.6, 0.1, 0.3]])
    blue = Predictions(
        predictions.table[:1].assign(predicted="blue"), probabilities, [*model.classes]
    )
    figure = show_attention(blue, model, eval_transform(16), num_images=1)
    _, (picture, for_blue, for_red) = shown(figure)
    image = loaders["val"].dataset[0][0]
    assert grad_cam(model, image, 0)[:, 9:].min() > grad_cam(model, image, 0)[:, :3].max()
    assert np.allclose(picture[8, 5], 0.5, atol=0.03)  # without the normalisation
    assert np.allclose(for_blue[:, 10:], picture[:, 10:], atol=0.02)  # as bright as it is
    assert np.allclose(for_blue[:, :2], 0.2 / 3, atol=0.02)  # dark and grey: red speaks against it
    assert np.allclose(for_red[:, :2], picture[:, :2], atol=0.02)
    assert np.allclose(for_red[:, 10:], 0.2 / 3, atol=0.02)


def test_without_paths_or_mistakes_the_figures_say_so(loaders):
    model = Colours()
    predictions = evaluate(model, loaders["val"], features=True)
    unknown = Predictions(
        predictions.table.assign(path=None), predictions.probabilities, predictions.classes
    )
    with pytest.raises(ParameterError, match="paths"):
        show_attention(unknown, model, eval_transform(16))
    right = predictions.table["predicted"] == predictions.table["label"]
    perfect = Predictions(predictions.table[right], predictions.probabilities[right], ["blue"])
    with pytest.raises(ParameterError, match="no mistakes"):
        show_neighbours(perfect, predictions)


def test_a_mistake_stands_beside_the_training_images_most_alike(loaders):
    model = Colours()
    val, train = (
        evaluate(model, unshuffled(loaders[split]), features=True) for split in ("val", "train")
    )
    titles, _ = shown(show_neighbours(val, train, num_images=2, num_similar=3))
    assert len(titles) == 4
    assert titles[0] == "✗ blue\nis red"
    assert [title.split("\n")[0] for title in titles[1:]] == ["blue"] * 3
    similarities = [float(title.split("\n")[1].removesuffix(" alike")) for title in titles[1:]]
    assert similarities == sorted(similarities, reverse=True) and similarities[0] > 0.99
