import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from resnet_ft import ParameterError, Preprocessing, eval_transform, train_transform
from resnet_ft.data.transforms import STRENGTHS, preprocessing_in, split_transform


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
    values = eval_transform(Preprocessing(224, mean=(0, 0, 0), std=(1, 1, 1)))(image)
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
    wanted = Preprocessing(96, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic", 0.95)
    transform = eval_transform(wanted)
    assert preprocessing_in(transform) == wanted
    assert preprocessing_in(pickle.loads(pickle.dumps(transform))) == wanted
    assert Preprocessing(**json.loads(json.dumps(wanted.described()))) == wanted
    transform.transforms[1] = v2.Resize(99)
    assert preprocessing_in(transform) is None


def test_the_preprocessing_decides_about_scale_interpolation_and_values():
    pixels = torch.randint(0, 256, (3, 80, 96), dtype=torch.uint8)
    image = v2.functional.to_pil_image(pixels)
    values = eval_transform(Preprocessing(48, (0.5,) * 3, (0.25,) * 3, "bicubic", 0.8))(image)
    resized = image.resize((72, 60), Image.Resampling.BICUBIC).crop((12, 6, 60, 54))
    expected = (torch.tensor(np.asarray(resized)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    assert (values - expected).abs().max() < 4 * 1.5 / 255  # Pillow rounds after each direction


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"mean": (0.5,)},
        {"std": (1, 0, 1)},
        {"mean": (0, 0, float("nan"))},
        {"crop_share": 1.1},
        {"interpolation": "nearest"},
    ],
)
def test_what_no_image_can_be_prepared_with_is_refused(wrong):
    with pytest.raises(ParameterError, match="cannot prepare an image"):
        Preprocessing(**wrong)


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
    assert preprocessing_in(transform) is None


def smooth(count, seed=0):
    """Images (N, 64, 64, 3) of bytes, of middling colours that no change makes black or white."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 60 + 96
    pixels = torch.nn.functional.interpolate(coarse, 64, mode="bilinear")
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def test_colours_equal_those_of_torchvision_on_floats_where_nothing_is_clamped():
    images = smooth(40)
    reference = v2.ColorJitter(0.2, 0.2, 0.2)
    normalise = eval_transform(64).transforms[-1]
    _, finish = split_transform(train_transform(64))
    expected, draws = [], []
    for seed, pixels in enumerate(images):
        floats = pixels.permute(2, 0, 1) / 255
        torch.manual_seed(seed)
        changed = reference(floats)
        assert changed.min() > 0 and changed.max() < 1
        expected.append(normalise(changed))
        torch.manual_seed(seed)
        draws.append(finish.draw())
    found = finish(images, torch.tensor(draws), torch.empty(40, 3, 64, 64))
    assert (found - torch.stack(expected)).abs().max() < 1e-4
    assert len({tuple(order[:4]) for order in draws}) > 10  # in many orders
    as_on_a_gpu = torch.empty(40, 3, 64, 64).to(memory_format=torch.channels_last)
    assert torch.allclose(finish(images, torch.tensor(draws), as_on_a_gpu), found, atol=1e-5)


def test_colours_beyond_black_and_white_are_clamped_once():
    mean, std = torch.tensor([0.5, 0.4, 0.3]), 0.2
    _, finish = split_transform(
        train_transform(Preprocessing(64, tuple(mean.tolist()), (std,) * 3))
    )
    half_white = torch.zeros(3, 64, 64, 3, dtype=torch.uint8)
    half_white[:, 32:] = 255
    in_order = [0, 1, 2, 3]  # brightness, contrast, saturation
    factors = [[1.2, 1, 1], [0.8, 1, 1], [1.2, 1 / 1.2, 1]]
    draws = torch.tensor([in_order + one for one in factors])
    values = finish(half_white, draws, torch.empty(3, 3, 64, 64)) * std + mean[:, None, None]
    assert values[0].max() == pytest.approx(1, abs=1e-3)
    assert values[1].max() == pytest.approx(0.8, abs=1e-3)
    # White becomes 1.2, the mean 0.6: with less contrast 1.1 and 0.1. Clamped between: 0.92.
    assert values[2].max() == pytest.approx(1, abs=1e-3)
    assert values[2].min() == pytest.approx(0.1, abs=1e-3)


def test_a_transform_alone_gives_what_a_batch_gives():
    image = v2.functional.to_pil_image(smooth(1)[0].permute(2, 0, 1))
    transform = train_transform(32)
    of_image, finish = split_transform(transform)
    for seed in range(5):
        torch.manual_seed(seed)
        alone = transform(image)
        torch.manual_seed(seed)
        pixels = of_image(image).permute(1, 2, 0)[None]
        batch = finish(pixels, torch.tensor([finish.draw()]), torch.empty(1, 3, 32, 32))
        assert torch.allclose(batch[0], alone, atol=1e-5)


def test_hue_is_not_left_for_the_batch():
    own = v2.Compose([*eval_transform(32).transforms[:-2], v2.ColorJitter(hue=0.1)])
    assert split_transform(own) == (own, None)
