import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from resnet_ft import ParameterError, eval_transform, train_transform
from resnet_ft.data.transforms import STRENGTHS, describe_preprocessing


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (30, 40)])
def test_both_transforms_give_normalised_squares(size):
    image = Image.new("RGB", size, (255, 255, 255))
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    evaluated = eval_transform(64)(image)
    assert evaluated.shape == (3, 64, 64)
    assert evaluated.dtype == torch.float32
    assert torch.allclose(evaluated, white[:, None, None].expand(3, 64, 64), atol=1e-5)
    assert train_transform(64)(image).shape == (3, 64, 64)


def test_evaluation_takes_the_centre_at_the_scale_of_imagenet():
    image = Image.new("RGB", (256, 256), (0, 0, 0))
    image.paste((255, 255, 255), (16, 16, 240, 240))  # exactly what a 224 crop of 256 keeps
    values = eval_transform(224, mean=(0, 0, 0), std=(1, 1, 1))(image)
    assert values.min() == 1


@pytest.mark.parametrize("strength", STRENGTHS)
def test_training_varies_and_evaluation_does_not(strength):
    pixels = torch.randint(0, 256, (3, 80, 80), dtype=torch.uint8)
    image = v2.functional.to_pil_image(pixels)
    transform = train_transform(32, strength=strength)
    assert not torch.equal(transform(image), transform(image))
    assert torch.equal(eval_transform(32)(image), eval_transform(32)(image))


def test_an_unknown_strength_names_the_known_ones():
    with pytest.raises(ParameterError, match="light, medium, strong"):
        train_transform(strength="brutal")


def test_an_evaluation_transform_is_described_by_its_arguments():
    transform = eval_transform(96, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    described = describe_preprocessing(transform)
    assert described == {"image_size": 96, "mean": [0.5] * 3, "std": [0.25] * 3}
    assert repr(eval_transform(**described)) == repr(transform)


@pytest.mark.parametrize(
    "transform",
    [
        None,
        lambda image: image,
        v2.Compose([v2.ToImage()]),
        train_transform(32),
        v2.Compose([v2.Grayscale(3), *eval_transform(32).transforms]),
        v2.Compose([v2.Resize(99), *eval_transform(32).transforms[1:]]),
    ],
)
def test_a_custom_transform_is_not_described(transform):
    assert describe_preprocessing(transform) is None
