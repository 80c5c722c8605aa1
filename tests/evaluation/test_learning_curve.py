import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from resnet_ft import (
    RunError,
    fit_head,
    learning_curve,
    load_predictions,
    make_dataloaders,
    pretrained_features,
)
from resnet_ft.features.solver import solve_head
from resnet_ft.training import head as head_module
from resnet_ft.training.run import Run

TYPES = 300
SHARES = 1 / torch.arange(1, TYPES + 1, dtype=torch.float64) ** 1.5
SHARES /= SHARES.sum()


def zipf(images, seed):
    """Two classes, each of 300 types of images that have nothing in common, most of them rare.

    A head knows the types that it has seen, and guesses the others (Hutter, "Learning curve
    theory", 2021).
    """
    generator = torch.Generator().manual_seed(seed)
    types = torch.multinomial(SHARES, images, replacement=True, generator=generator)
    labels = torch.arange(images) % 2
    return torch.eye(2 * TYPES)[types + TYPES * labels], labels


def accuracy_of(per_class):
    """1 - half the probability that an image is of a type that is not among those learned from."""
    return 1 - 0.5 * float((SHARES * (1 - SHARES) ** per_class).sum())


@pytest.fixture(scope="module")
def curve():
    return learning_curve({"train": zipf(400, 0), "val": zipf(1000, 1)}, draws=6)


def test_the_accuracies_are_those_of_a_curve_that_is_known(curve):
    found = curve.points.groupby("images")["accuracy"].mean()
    assert found.index.tolist() == [24, 50, 100, 200]
    for images, accuracy in found.items():
        assert accuracy == pytest.approx(accuracy_of(images), abs=0.03)


def test_what_doubling_brings_is_predicted_within_its_band(curve):
    gain, low, high = curve.gain
    true = accuracy_of(400) - accuracy_of(200)  # 1.7 points
    assert low < true < high and high - low < 0.03
    assert gain == pytest.approx(true, abs=0.006)
    assert curve.sentence == (
        f"Doubling to 400 images per class: about {100 * gain:+.1f} points "
        f"({100 * low:.1f} to {100 * high:.1f})."
    )


def test_the_law_rises_to_twice_the_images_within_its_band(curve):
    law = curve.law
    assert (law["images"].iloc[[0, -1]] == [24, 400]).all()
    assert (np.diff(law["accuracy"]) > 0).all()
    assert law["accuracy"].between(law["low"], law["high"]).all()
    assert law["accuracy"].iloc[-1] == pytest.approx(accuracy_of(400), abs=0.02)


def test_images_that_a_head_knows_already_gain_nothing_from_more():
    labels = torch.arange(80) % 2
    features = torch.eye(2)[labels] + 0.01 * torch.randn(80, 2)
    curve = learning_curve({"train": (features, labels), "val": (features, labels)}, draws=2)
    assert curve.gain == pytest.approx((0, 0, 0), abs=1e-3)
    assert "about +0.0 points (0.0 to 0.0)" in curve.sentence


def test_of_too_few_images_the_curve_says_that_they_are_too_few():
    labels = torch.tensor([0, 1] * 2)
    curve = learning_curve({"train": (torch.eye(4), labels), "val": (torch.eye(4), labels)})
    assert curve.law.empty and np.isnan(curve.gain).all()
    assert curve.sentence == "2 images per class are too few to tell what more would bring."


def a_run(photos, folder):
    loaders = make_dataloaders(photos, image_size=32, num_workers=0)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())
    model.append(torch.nn.Linear(48, 2))
    run = Run.open(folder)
    fit_head(model, loaders, run=run, cache_dir=folder.parent / "features")
    return run, loaders, model


def test_a_run_keeps_what_its_head_was_solved_on(photos, tmp_path):
    run, loaders, model = a_run(photos, tmp_path / "run")
    kept = pretrained_features(run)
    features, labels = kept["train"]
    assert features.shape == (17, 48) and features.dtype == torch.float16
    dataset = loaders["train"].dataset
    assert labels.tolist() == dataset.targets and len(kept["val"][1]) == 6
    image = loaders["val"].dataset[4][0]
    torch.testing.assert_close(
        kept["val"][0][4].float(), model[:2](image[None])[0], atol=0.01, rtol=0.01
    )
    table = load_predictions(run.folder / "head_predictions.csv").table
    assert [dataset.classes[label] for label in labels] == table["label"].tolist()
    points = learning_curve(kept, draws=2).points
    assert points["accuracy"].between(0, 1).all()
    assert kept["penalty"] == solve_head(features, labels, 2).penalty  # not looked for again
    searched = {split: kept[split] for split in ("train", "val")}  # in runs that kept none
    pd.testing.assert_frame_equal(learning_curve(searched, draws=2).points, points)


def test_features_that_are_too_large_for_a_run_are_left_out_and_this_is_said(
    photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(head_module, "_MOST_KEPT", 1000)
    run, *_ = a_run(photos, tmp_path / "run")
    assert "head_features.safetensors is left out" in capsys.readouterr().out
    assert pretrained_features(run) == {}
    assert "No learning curve" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["half", "labels", "infinite"])
def test_damaged_features_are_refused(tmp_path, damage):
    file = tmp_path / "head_features.safetensors"
    tensors = {"train_features": torch.ones(4, 3), "train_labels": torch.zeros(4).long()}
    tensors |= {"val_features": torch.ones(2, 3), "val_labels": torch.zeros(2).long()}
    save_file(tensors, file)
    assert pretrained_features(tmp_path)["val"][0].shape == (2, 3)
    if damage == "half":
        file.write_bytes(file.read_bytes()[:100])
    else:
        tensors = load_file(file)
        tensors["val_labels" if damage == "labels" else "val_features"] = torch.full(
            (3, 3), torch.inf
        )
        save_file(tensors, file)
    with pytest.raises(RunError, match=r"head_features.*cannot be read"):
        pretrained_features(tmp_path)
