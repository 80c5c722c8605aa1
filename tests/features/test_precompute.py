import os

import numpy as np
import pytest
import torch
from conftest import write_image
from torch import nn
from torch.optim import SGD
from torchvision import transforms

from resnet_ft import (
    MixedLoader,
    ParameterError,
    Preprocessing,
    TrainingError,
    build_model,
    eval_transform,
    evaluate,
    freeze,
    freeze_batchnorm,
    load_checkpoint,
    make_dataloaders,
    precompute,
    train_model,
    train_transform,
)
from resnet_ft.features.store import FeatureFile

STAGES = ("layer1", "layer2", "layer3", "layer4", "fc")


def resnet18(num_classes=2):
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes, weights=None)
    model.pretrained = True
    # Statistics and weights that BatchNorm has in a trained model: not zeros and ones.
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    return model


@pytest.fixture
def loaders(photos):
    return make_dataloaders(photos, image_size=32, batch_size=5, num_workers=0)


def stored(directory):
    return sorted(path.name for path in directory.glob("*.f16"))


def prefix_of(model, stage, images):
    """The input of a stage, computed the long way round."""
    found = []
    layer = model.avgpool if stage == "fc" else getattr(model, stage)
    hook = layer.register_forward_hook(
        lambda _, given, out: found.append(out.flatten(1) if stage == "fc" else given[0])
    )
    with torch.inference_mode():
        model.eval()(images)
    hook.remove()
    return found[0]


def check_features(model, loaders, features, stage="fc"):
    """Compare those of the validation images with what the model computes, to half precision."""
    images = torch.cat([images.clone() for images, _ in loaders["val"]])
    found = torch.cat([batch for batch, _ in features["val"]])
    expected = prefix_of(model, stage, images)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_features_are_what_the_frozen_layers_put_out(loaders, tmp_path, stage):
    model = resnet18()
    freeze(model, until=stage)
    head, features = precompute(model, loaders, cache_dir=tmp_path)
    check_features(model, loaders, features, stage)
    images = torch.cat([images.clone() for images, _ in loaders["val"]])
    expected = prefix_of(model, stage, images)
    with torch.inference_mode():
        torch.testing.assert_close(head.eval()(expected), model(images), rtol=1e-4, atol=1e-4)


def test_with_one_view_training_images_are_seen_as_in_evaluation(loaders, photos, tmp_path):
    model = resnet18()
    freeze(model, until="fc")
    _, features = precompute(model, loaders, cache_dir=tmp_path)
    as_val = make_dataloaders(
        photos, image_size=32, batch_size=5, num_workers=0, train=eval_transform(32)
    )
    for epoch in (0, 1):
        features["train"].batch_sampler.set_epoch(epoch)
        as_val["train"].batch_sampler.set_epoch(epoch)
        for (found, labels), (images, same) in zip(features["train"], as_val["train"], strict=True):
            assert labels.tolist() == same.tolist()
            torch.testing.assert_close(found, prefix_of(model, "fc", images), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("stage", "rate"), [("fc", 0.02), ("layer4", 0.01)])
def test_training_on_features_is_training_behind_the_frozen_layers(loaders, tmp_path, stage, rate):
    behind, cut = resnet18(), resnet18()
    for model in (behind, cut):
        freeze(model, until=stage)
        freeze_batchnorm(model)  # over five images of one pixel it magnifies what is rounded
    head, features = precompute(cut, loaders, cache_dir=tmp_path, views=3)
    trained = [p for p in behind.parameters() if p.requires_grad]
    _, expected = train_model(behind, loaders, optimizer=SGD(trained, lr=rate), num_epochs=3)
    loaders["train"].batch_sampler.set_epoch(0)
    _, found = train_model(head, features, optimizer=SGD(head.parameters(), lr=rate), num_epochs=3)
    for column in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(found[column], expected[column], rtol=0.02, atol=0.02)
    for name, tensor in behind.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], tensor, rtol=0.02, atol=0.02)


def test_each_view_is_an_epoch_of_the_training_loader_and_they_come_in_turn(loaders, tmp_path):
    model = resnet18()
    freeze(model, until="fc")
    _, features = precompute(model, loaders, cache_dir=tmp_path, views=2)
    first, second, third = ([batch.clone() for batch, _ in features["train"]] for _ in range(3))
    dataset = features["train"].dataset
    assert len(dataset.views) == 2
    assert not np.array_equal(dataset.views[0], dataset.views[1])
    assert not torch.equal(first[0], second[0])
    rows = {tuple(row) for row in dataset.views[0].float().tolist()}
    assert {tuple(row.tolist()) for batch in third for row in batch} == rows


def test_what_is_saved_is_the_full_model_and_predicts_as_the_head_does(loaders, tmp_path):
    model = resnet18()
    freeze(model, until="layer4")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head, features = precompute(model, loaders, cache_dir=tmp_path)
    head, _ = train_model(head, features, num_epochs=1, run_dir=tmp_path / "run")
    assert head.full_model is model and not model.training
    saved = load_checkpoint(tmp_path / "run" / "best.pt")
    assert saved.arch == "resnet18" and saved.classes == ["blue", "red"]
    assert saved.preprocessing["image_size"] == 32
    full = evaluate(saved.load_into(), loaders["val"])
    of_head = evaluate(head, features["val"])
    np.testing.assert_allclose(full.probabilities, of_head.probabilities, atol=2e-3)
    assert full.table["path"].tolist() == of_head.table["path"].tolist()
    changed = {
        n.split(".")[0] for n, t in model.state_dict().items() if not torch.equal(t, before[n])
    }
    assert changed == {"layer4", "fc"}


def test_the_model_stays_in_its_mode_and_is_not_changed(loaders, tmp_path):
    model = resnet18()
    freeze(model, until="fc")
    model.train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    precompute(model, loaders, cache_dir=tmp_path)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.processes
def test_the_next_run_and_the_next_head_find_the_features(loaders, photos, tmp_path):
    model = resnet18()
    freeze(model, until="fc")
    precompute(model, loaders, cache_dir=tmp_path)
    names = stored(tmp_path)
    assert len(names) == 2
    other = resnet18(num_classes=7)  # another head, other loaders, other batches, another mode
    body = {name: t for name, t in model.state_dict().items() if not name.startswith("fc")}
    other.load_state_dict(body, strict=False)
    freeze(other, until="fc")
    other.train()
    again = make_dataloaders(photos, image_size=32, batch_size=3, num_workers=2, seed=9)
    head, features = precompute(other, again, cache_dir=tmp_path)
    assert stored(tmp_path) == names
    assert [len(batch) for batch, _ in features["val"]] == [3, 3]
    assert head[0].out_features == 7


def change_a_weight(model, _loaders, _photos):
    with torch.no_grad():
        model.layer3[0].conv1.weight[0, 0, 0, 0] += 1e-3


def change_a_statistic(model, _loaders, _photos):
    model.bn1.running_mean[0] += 1e-3


def change_the_transform(_model, loaders, photos):
    transform = eval_transform(Preprocessing(32, mean=(0.5, 0.5, 0.5)))
    loaders |= make_dataloaders(photos, num_workers=0, train=transform, val=transform)


def change_a_training_file(_model, loaders, photos):
    write_image(photos / "Train" / "red" / "0.png", size=(50, 41), colour=(0, 0, 0))
    loaders |= make_dataloaders(photos, image_size=32, num_workers=0)


@pytest.mark.parametrize(
    ("change", "new"),
    [
        (change_a_weight, 2),
        (change_a_statistic, 2),
        (change_the_transform, 2),
        (change_a_training_file, 1),
    ],
)
def test_a_changed_weight_transform_or_file_makes_new_features(
    loaders, photos, tmp_path, change, new
):
    model = resnet18()
    freeze(model, until="fc")
    precompute(model, loaders, cache_dir=tmp_path / "features")
    before = set(stored(tmp_path / "features"))
    change(model, loaders, photos)
    _, features = precompute(model, loaders, cache_dir=tmp_path / "features")
    assert len(set(stored(tmp_path / "features")) - before) == new
    check_features(model, loaders, features)


def test_an_unknown_transform_is_never_mistaken_for_another(photos, tmp_path):
    model = resnet18()
    freeze(model, until="fc")
    plain = eval_transform(32)
    for brightness in (1.0, 0.2):
        loaders = make_dataloaders(
            photos,
            image_size=32,
            num_workers=0,
            val=lambda image, brightness=brightness: plain(image) * brightness,
        )
        _, features = precompute(model, loaders, cache_dir=tmp_path)
        check_features(model, loaders, features)


class Interrupt(Exception):
    pass


def test_an_interrupted_pass_resumes(photos, tmp_path):
    model = resnet18()
    freeze(model, until="fc")
    seen, limit = [], 8
    plain = eval_transform(32)

    class Counting:
        """An evaluation transform that gives up after a while."""

        def __call__(self, image):
            seen.append(1)
            if len(seen) > limit:
                raise Interrupt
            return plain(image)

    # Its features are its own only within one key, so let it pass for a transform of torchvision.
    Counting.__module__ = "torchvision.transforms.test"
    Counting.__repr__ = lambda self: "Counting()"
    val = Counting()
    loaders = make_dataloaders(photos, image_size=32, batch_size=3, num_workers=0, val=val)
    with pytest.raises(Interrupt):
        precompute(model, loaders, cache_dir=tmp_path)
    part = next(tmp_path.glob("*.part"))
    assert part.stat().st_size == 6 * 512 * 2  # two batches of three; two images were the trial
    with part.open("ab") as file:
        file.write(b"half a row")
    seen.clear()
    limit = 1000
    _, features = precompute(model, loaders, cache_dir=tmp_path)
    assert len(seen) == 2 + (17 - 6) + 6
    assert not list(tmp_path.glob("*.part"))
    alone = make_dataloaders(photos, image_size=32, batch_size=3, num_workers=0)
    _, expected = precompute(model, alone, cache_dir=tmp_path / "other")
    for split in ("train", "val"):
        found, same = (one[split].dataset.views[0] for one in (features, expected))
        assert np.allclose(found, same, atol=2e-3)


def test_the_least_recently_used_makes_room_and_too_little_room_is_an_error(loaders, tmp_path):
    model = resnet18()
    freeze(model, until="fc")
    size_gb = (17 + 6) * 512 * 2 / 2**30
    written = {}
    for age, name in ((2000, "first"), (3000, "second")):
        before = set(stored(tmp_path))
        model.bn1.running_mean[0] += 0.1
        precompute(model, loaders, cache_dir=tmp_path, cache_size_gb=2 * size_gb)
        written[name] = set(stored(tmp_path)) - before
        for file in written[name]:
            os.utime(tmp_path / file, (age, age))
    model.bn1.running_mean[0] -= 0.1
    precompute(model, loaders, cache_dir=tmp_path)  # uses the first again
    model.bn1.running_mean[0] -= 0.1
    precompute(model, loaders, cache_dir=tmp_path, cache_size_gb=2 * size_gb)
    assert len(stored(tmp_path)) == 4
    assert written["first"] < set(stored(tmp_path)) and not written["second"] & set(
        stored(tmp_path)
    )
    freeze(model, until="layer1")
    with pytest.raises(TrainingError, match=r"need 0\.2 MiB .*freeze\(model, until=\"fc\"\)"):
        precompute(model, loaders, cache_dir=tmp_path / "small", cache_size_gb=size_gb)
    before = stored(tmp_path)
    with pytest.raises(TrainingError, match=r"need 0\.2 MiB"):
        precompute(model, loaders, cache_dir=tmp_path, cache_size_gb=2 * size_gb)
    assert stored(tmp_path) == before  # nothing is deleted in vain


class OwnNetwork(nn.Module):
    """Convolutions, a `view` that wants the usual memory layout, dropout, two Linear layers."""

    def __init__(self, after=None):
        super().__init__()
        self.convolve = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU())
        self.hidden = nn.Linear(4 * 15 * 15, 8)
        self.classify = nn.Linear(8, 2)
        self.after = after

    def forward(self, images):
        features = self.convolve(images)
        features = features.view(len(images), -1)
        logits = self.classify(self.hidden(features).relu())
        return logits if self.after is None else logits * self.after


def test_any_model_with_a_linear_head_can_be_cut_before_it(loaders, tmp_path):
    model = OwnNetwork()
    freeze(model, until="classify")
    head, features = precompute(model, loaders, cache_dir=tmp_path)
    assert next(iter(features["train"]))[0].shape == (5, 8)
    before = evaluate(model, loaders["val"]).probabilities
    np.testing.assert_allclose(evaluate(head, features["val"]).probabilities, before, atol=2e-3)
    train_model(head, features, num_epochs=1)
    assert not np.allclose(evaluate(model, loaders["val"]).probabilities, before, atol=1e-6)


def test_models_of_timm_can_be_cut_before_their_head(loaders, tmp_path):
    pytest.importorskip("timm")
    model = build_model("timm/resnet18", 2, weights=None)
    model.pretrained = True
    freeze(model, until="fc")
    head, features = precompute(model, loaders, cache_dir=tmp_path)
    found = evaluate(head, features["val"]).probabilities
    np.testing.assert_allclose(found, evaluate(model, loaders["val"]).probabilities, atol=2e-3)


@pytest.mark.parametrize(
    ("make", "until", "message"),
    [
        (resnet18, "conv1", "conv1.weight trains.*one of layer1, layer2"),
        (resnet18, "bn1", "bn1.weight trains"),
        (OwnNetwork, "hidden", "hidden.weight trains.*until='classify'"),
        (lambda: OwnNetwork(after=2.0), "classify", "does more than to run its last layers"),
        (lambda: nn.Sequential(nn.Conv2d(3, 2, 32), nn.Flatten()), "0", "no Linear layer"),
    ],
)
def test_a_model_that_cannot_be_cut_there_is_refused(loaders, tmp_path, make, until, message):
    model = make()
    freeze(model, until=until)
    with pytest.raises(ParameterError, match=message):
        precompute(model, loaders, cache_dir=tmp_path)


def test_a_frozen_model_and_other_loaders_are_refused(loaders, tmp_path):
    model = resnet18()
    for parameter in model.parameters():
        parameter.requires_grad = False
    with pytest.raises(ParameterError, match="Every layer is frozen"):
        precompute(model, loaders, cache_dir=tmp_path)
    freeze(model, until="fc")
    mixed = {**loaders, "train": MixedLoader(loaders["train"], 2)}
    for others in (mixed, {"train": [1], "val": [1]}):
        with pytest.raises(ParameterError, match="make_dataloaders"):
            precompute(model, others, cache_dir=tmp_path)
    with pytest.raises(ParameterError, match="views=0"):
        precompute(model, loaders, cache_dir=tmp_path, views=0)


def scale(model):
    with torch.no_grad():  # weights of both signs, for values from 0 to some hundred thousand
        model.hidden.weight *= 1e6


def shift(model):
    with torch.no_grad():  # bfloat16 has steps of 512 there: all images would be the same
        model.hidden.bias += 1e5


@pytest.mark.parametrize(("enlarge", "suffix"), [(scale, "bf16"), (shift, "f32")])
def test_values_beyond_half_precision_are_stored_in_a_type_that_keeps_them_apart(
    photos, tmp_path, capsys, enlarge, suffix
):
    rng = np.random.default_rng(0)
    for path in photos.glob("*/*/*.png"):
        write_image(path, colour=rng.integers(0, 256, 3))
    loaders = make_dataloaders(photos, image_size=32, batch_size=5, num_workers=0)
    cache = tmp_path / "features"
    torch.manual_seed(0)
    model = OwnNetwork()
    enlarge(model)
    freeze(model, until="classify")
    for _ in range(2):  # computed, and found again
        _, features = precompute(model, loaders, cache_dir=cache)
        assert [path.suffix for path in cache.glob("features-*-*")] == [f".{suffix}"] * 2
        images = torch.cat([images.clone() for images, _ in loaders["val"]])
        with torch.inference_mode():
            model.eval()
            expected = model.hidden(model.convolve(images).view(len(images), -1)).relu()
        found = torch.cat([batch for batch, _ in features["val"]])
        assert found.dtype == torch.float32 and found.max() > 65_504
        variation = (expected - expected.mean(dim=0)).norm()
        assert (found - expected).norm() < 0.05 * variation
    said = "above 65,504, which half precision cannot hold, so they are stored in "
    assert capsys.readouterr().out.count(said) == 1


class Growing(nn.Module):
    """Outputs that grow steeply with the brightness of an image."""

    def __init__(self, factor):
        super().__init__()
        self.convolve, self.classify = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
        nn.init.constant_(self.convolve.weight, factor)

    def forward(self, images):
        return self.classify(self.convolve(images).mean(dim=(2, 3)).exp())


def growing(factor=1.8):
    torch.manual_seed(0)
    model = Growing(factor)
    freeze(model, until="classify")
    return model


@pytest.fixture
def brightening(photos):
    """Loaders of dark images, with one at the end of Train that is white."""
    for grey, path in enumerate(sorted(photos.glob("*/*/*.png"))):
        write_image(path, colour=(5 * grey,) * 3)
    write_image(photos / "Train" / "red" / "9.png", colour=(250, 250, 250))
    return make_dataloaders(photos, image_size=32, batch_size=5, num_workers=0)


def test_a_file_starts_again_where_a_later_batch_does_not_fit(brightening, tmp_path):
    head, features = precompute(growing(), brightening, cache_dir=tmp_path)
    train = features["train"].dataset
    assert (train.views[0].dtype, len(train)) == (torch.bfloat16, 18)
    assert features["val"].dataset.views[0].dtype == torch.float16  # each file for itself
    assert train.views[0][:15].max() < 1000 and train.views[0].max() > 65_504
    of_model = evaluate(head.full_model, brightening["val"]).probabilities
    np.testing.assert_allclose(evaluate(head, features["val"]).probabilities, of_model, atol=2e-3)
    assert not list(tmp_path.glob("*.part"))


def test_the_limit_of_the_size_counts_the_type_that_is_stored(loaders, tmp_path):
    model = OwnNetwork()
    freeze(model, until="classify")
    halves_gb = (17 + 6) * 8 * 2 / 2**30
    precompute(model, loaders, cache_dir=tmp_path / "small", cache_size_gb=halves_gb)
    shift(model)
    with pytest.raises(TrainingError, match="The outputs of the frozen layers need"):
        precompute(model, loaders, cache_dir=tmp_path / "large", cache_size_gb=halves_gb)


def test_values_that_are_not_finite_are_an_error(brightening, tmp_path):
    with pytest.raises(TrainingError, match=r"not finite.*notebook 02"):
        precompute(growing(factor=20), brightening, cache_dir=tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_of_an_interrupted_process_keep_their_type(tmp_path, dtype):
    rows = torch.arange(12).view(4, 3).to(dtype)
    for part in rows.split(2):
        file = FeatureFile(tmp_path, "0123456789abcdef", 4)
        assert file.find() is None
        file.append(part)
        assert file.dtype == dtype
    assert file.rows_done() == 4
    file.finish()
    found = file.find()
    assert found.dtype == dtype and torch.equal(found, rows)


def test_varied_views_depend_on_the_strength_of_the_augmentation(photos, tmp_path):
    model = resnet18()
    freeze(model, until="fc")
    for count, strength in ((3, "light"), (5, "strong")):
        loaders = make_dataloaders(
            photos, image_size=32, num_workers=0, train=train_transform(32, strength=strength)
        )
        precompute(model, loaders, cache_dir=tmp_path, views=2)
        assert len(stored(tmp_path)) == count  # the validation view is the same


class Scaled(nn.Module):
    """What it computes depends on numbers that neither its layers nor its weights show."""

    def __init__(self, before=1.0, after=1.0):
        super().__init__()
        self.fc = nn.Linear(4, 2)  # before the convolution in the order of the modules
        self.convolve = nn.Conv2d(3, 4, 3)
        self.before, self.after = before, after

    def forward(self, images):
        return self.after * self.fc(self.before * self.convolve(images).mean(dim=(2, 3)))


def scaled(**factors):
    torch.manual_seed(0)
    model = Scaled(**factors)
    for parameter in model.convolve.parameters():
        parameter.requires_grad = False
    return model


def test_features_of_a_model_that_computes_something_else_are_not_used(loaders, tmp_path):
    for factor in (1.0, 50.0):
        model = scaled(before=factor)
        head, features = precompute(model, loaders, cache_dir=tmp_path)
        expected = evaluate(model, loaders["val"]).probabilities
        found = evaluate(head, features["val"]).probabilities
        np.testing.assert_allclose(found, expected, atol=2e-3)
    assert len(stored(tmp_path)) == 2
    with pytest.raises(ParameterError, match="does more than"):
        precompute(scaled(after=3.0), loaders, cache_dir=tmp_path)


def test_features_of_unknown_transforms_do_not_pile_up(photos, tmp_path):
    model = resnet18()
    freeze(model, until="fc")
    old = [transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()]
    for factor in (1.0, -5.0):
        val = transforms.Compose([*old, transforms.Lambda(lambda x, factor=factor: x * factor)])
        loaders = make_dataloaders(photos, image_size=32, num_workers=0, val=val)
        _, features = precompute(model, loaders, cache_dir=tmp_path)
        check_features(model, loaders, features)
        assert len(stored(tmp_path)) == 2


def test_a_file_that_was_cut_off_is_computed_again(loaders, tmp_path):
    model = resnet18()
    freeze(model, until="fc")
    precompute(model, loaders, cache_dir=tmp_path)
    for path in tmp_path.glob("*.f16"):
        os.truncate(path, 1000)
    _, features = precompute(model, loaders, cache_dir=tmp_path)
    check_features(model, loaders, features)


def test_where_the_cache_cannot_be_written_features_are_kept_elsewhere(loaders, tmp_path):
    model = resnet18()
    freeze(model, until="fc")
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"file/features cannot be written to .*cache_dir"):
        _, features = precompute(model, loaders, cache_dir=tmp_path / "file" / "features")
    assert next(iter(features["train"]))[0].shape == (5, 512)


class Narrow(OwnNetwork):
    """Has room for two images at once."""

    def forward(self, images):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(images)


def test_a_batch_that_is_too_large_goes_through_the_frozen_layers_in_parts(loaders, tmp_path):
    torch.manual_seed(0)
    model, narrow = OwnNetwork(), Narrow()
    narrow.load_state_dict(model.state_dict())
    for one in (model, narrow):
        freeze(one, until="classify")
    _, expected = precompute(model, loaders, cache_dir=tmp_path / "whole")
    with pytest.warns(UserWarning, match=r"5 images at once.*in 4 parts"):
        _, found = precompute(narrow, loaders, cache_dir=tmp_path / "parts")
    for split in ("train", "val"):
        same, views = (one[split].dataset.views[0] for one in (expected, found))
        torch.testing.assert_close(views, same, rtol=2e-3, atol=2e-3)
