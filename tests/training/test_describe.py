"""What makes a run another run: what changes its numbers, and nothing else."""

import functools

import pytest
import torch
from conftest import network
from torch import nn
from torchvision.transforms import v2

from resnet_ft import (
    EarlyStop,
    MixedLoader,
    Run,
    RunError,
    balanced_loader,
    eval_transform,
    make_dataloaders,
    train_model,
    train_transform,
)
from resnet_ft.training.describe import described


class Darker(nn.Module):
    """A transform of one's own, which counts what it has seen."""

    def __init__(self, factor=0.5):
        super().__init__()
        self.factor, self.count = factor, 0

    def forward(self, image):
        self.count += 1
        return image * self.factor


def train(photos, run_dir, *, epochs=1, change=None, criterion=None, callbacks=(), **options):
    options = {"image_size": 32, "batch_size": 6, "num_workers": 0} | options
    loaders = make_dataloaders(photos, **options)
    if change:
        loaders["train"] = change(loaders["train"])
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return train_model(
        *(model, loaders, criterion, optimizer, None, epochs), run_dir=run_dir, callbacks=callbacks
    )


WEIGHTED = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ({}, {"criterion": nn.CrossEntropyLoss(label_smoothing=0.1)}, "label_smoothing=0.1"),
        ({}, {"criterion": WEIGHTED}, "criterion_settings"),
        (
            {"criterion": WEIGHTED},
            {"criterion": nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]))},
            r"weight=array\(\(2,\), ",
        ),
        ({}, {"seed": 1}, "sampling was .*seed=0.*, now .*seed=1"),
        ({}, {"train": train_transform(32, strength="strong")}, "train_transform"),
        (
            {"val": eval_transform(32)},
            {"val": v2.Compose([*eval_transform(32).transforms, Darker()])},
            "val_transform",
        ),
        ({}, {"change": lambda loader: MixedLoader(loader, 2)}, "sampling"),
        ({}, {"change": balanced_loader}, "_BalancedBatchSampler"),
        (
            {"change": lambda loader: MixedLoader(loader, 2, alpha=0.2)},
            {"change": lambda loader: MixedLoader(loader, 2, alpha=0.3)},
            r"alpha=0\.2.*alpha=0\.3",
        ),
    ],
)
def test_what_changes_the_numbers_is_refused_by_name(photos, tmp_path, first, then, said):
    train(photos, tmp_path / "run", **first)
    with pytest.raises(RunError, match=f"{said}.*another run_dir"):
        train(photos, tmp_path / "run", epochs=2, **then)
    _, history = train(photos, tmp_path / "run", epochs=2, **first)
    assert len(history) == 2


def test_what_cannot_be_compared_is_warned_of_once_and_never_refused(photos, tmp_path):
    plain = eval_transform(32)
    own = [v2.Compose([*plain.transforms, Darker(factor)]) for factor in (0.5, 0.6)]
    train(photos, tmp_path / "run", train=own[0])
    with pytest.warns(
        UserWarning, match=r"resumes with what may not be as it was.*factor=0\.6"
    ) as w:
        train(photos, tmp_path / "run", epochs=2, train=own[1])
    assert len(w) == 1


def test_another_version_of_a_library_makes_differences_unsure(photos, tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr("resnet_ft.training.run.version", lambda name: "0.20.0")
        train(photos, tmp_path / "run")
    with pytest.warns(UserWarning, match="train_transform was"):
        train(photos, tmp_path / "run", epochs=2, train=train_transform(32, strength="light"))


def test_places_and_workers_are_no_part_of_a_run(photos, tmp_path):
    weights = tmp_path / "w.pth"
    torch.save({}, weights)
    first = {"data_source": "photos", "weights": weights}
    Run.open(tmp_path / "run", first)
    train(photos, tmp_path / "run")
    weights.rename(tmp_path / "elsewhere.pth")
    again = {"data_source": f"{photos}/", "weights": tmp_path / "elsewhere.pth"}
    run = Run.open(tmp_path / "run", again)
    assert run.config["data_source"] == f"{photos}/"  # where the images are now
    train(photos, run, epochs=2, num_workers=1)
    torch.save({"other": torch.ones(1)}, weights)
    with pytest.raises(RunError, match="weights_content was"):
        Run.open(tmp_path / "run", {"weights": weights})


def test_more_patience_lets_a_stopped_run_continue(photos, tmp_path):
    def stop(patience):
        return [EarlyStop(patience, min_delta=9.0)]  # nothing counts as better

    history = train(photos, tmp_path / "run", epochs=6, callbacks=stop(1))[1]
    assert len(history) == 2
    assert len(train(photos, tmp_path / "run", epochs=6, callbacks=stop(1))[1]) == 2
    assert len(train(photos, tmp_path / "run", epochs=6, callbacks=stop(3))[1]) == 4
    assert len(train(photos, tmp_path / "run", epochs=6, callbacks=stop(2))[1]) == 4


def a_function(logits, labels):
    return nn.functional.cross_entropy(logits, labels)


def test_descriptions_are_equal_for_equal_things_and_mark_what_is_unsure():
    assert described(train_transform(64)) == described(train_transform(64))
    assert described(train_transform(64)) != described(train_transform(32))
    assert "?" not in described(train_transform(64)) + described(WEIGHTED) + described(a_function)
    smooth = functools.partial(a_function, label_smoothing=0.1)
    assert described(smooth).endswith("test_describe.a_function, args=(), label_smoothing=0.1)")
    assert described(lambda logits, labels: 0).startswith("?")
    assert described(Darker()).startswith("?Darker(factor=0.5")
    circle = []
    circle.append(circle)
    assert described({"a": torch.float32, "b": {1, 2}, "c": object()})
