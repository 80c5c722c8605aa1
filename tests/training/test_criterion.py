"""A batch in parts takes the same step, whatever the criterion divides by."""

import pytest
import torch
from conftest import tensors
from several import CRITERIA
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft import (
    ParameterError,
    TrainingError,
    configure_engine,
    make_dataloaders,
    train_model,
)
from resnet_ft.training.criterion import weight_of

WEIGHTS = torch.tensor([10.0, 0.1])


def some_ignored(count, seed):
    """Two of the first four labels, and the last four: all of what is a part of a batch."""
    images, labels = tensors(count, seed).tensors
    labels[:2] = labels[-4:] = -100
    return TensorDataset(images, labels)


def mixed(count, seed):
    images, labels = tensors(count, seed).tensors
    return TensorDataset(images, 0.8 * nn.functional.one_hot(labels, 2) + 0.1)


def train(criterion, parts, make=tensors, **options):
    configure_engine(gradient_accumulation_steps=parts)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(243, 4), nn.ReLU(), nn.Linear(4, 2))
    options = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)} | options
    loaders = {
        "train": DataLoader(make(24, 0), batch_size=8),
        "val": DataLoader(make(9, 1), batch_size=9),
    }
    try:
        return train_model(model, loaders, criterion, num_epochs=2, **options)
    finally:
        configure_engine(gradient_accumulation_steps=1)


@pytest.mark.parametrize(
    ("criterion", "make"),
    [
        (nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1), tensors),
        (nn.CrossEntropyLoss(WEIGHTS), some_ignored),
        (nn.CrossEntropyLoss(), some_ignored),
        (nn.CrossEntropyLoss(WEIGHTS), mixed),
        (nn.CrossEntropyLoss(reduction="sum"), tensors),
        (CRITERIA["focal"], tensors),
    ],
)
def test_a_batch_in_parts_takes_the_same_steps_and_has_the_same_loss(criterion, make):
    model, whole = train(criterion, 1, make)
    for parts in (2, 4, 5):
        other, history = train(criterion, parts, make)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], tensor)
        for column in ("train_loss", "val_loss"):
            assert history[column].tolist() == pytest.approx(whole[column].tolist(), rel=1e-5)


def test_the_denominator_is_the_criterions_own():
    labels = torch.tensor([0, 1, 1, -100])
    assert weight_of(nn.CrossEntropyLoss(), labels) == 3
    assert weight_of(nn.CrossEntropyLoss(WEIGHTS), labels) == pytest.approx(10 + 0.1 + 0.1)
    assert weight_of(nn.CrossEntropyLoss(ignore_index=1), labels) == 2
    assert weight_of(nn.CrossEntropyLoss(WEIGHTS), torch.full((5, 2), 0.5)) == 5
    assert weight_of(CRITERIA["focal"], labels) == 4


def test_a_loss_with_class_weights_is_a_mean_over_the_weights_of_all_samples():
    """It does not depend on how the images are spread over batches."""
    criterion, found = nn.CrossEntropyLoss(WEIGHTS), []
    for size in (2, 9):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(243, 2))
        images, labels = tensors(9, 1).tensors
        expected = criterion(model(images), labels).item()
        loaders = {name: DataLoader(tensors(9, 1), batch_size=size) for name in ("train", "val")}
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        _, history = train_model(model, loaders, criterion, still, num_epochs=1)
        found += [*history[["train_loss", "val_loss"]].iloc[0]]
    assert found == pytest.approx([expected] * 4, rel=1e-5)


def test_a_criterion_that_is_no_mean_is_refused_in_parts_alone():
    assert len(train(CRITERIA["highest"], 1)[1]) == 2
    with pytest.raises(TrainingError, match="cannot be split into micro-batches"):
        train(CRITERIA["highest"], 2)


def test_a_loss_per_sample_and_an_optimizer_that_needs_several_losses_are_refused():
    with pytest.raises(ParameterError, match=r'reduction="mean" or "sum"'):
        train(nn.CrossEntropyLoss(reduction="none"), 1)
    with pytest.raises(ParameterError, match="LBFGS computes a loss several times per step"):
        train(None, 1, optimizer=torch.optim.LBFGS([nn.Parameter(torch.zeros(1))]))


def test_a_layer_that_takes_the_place_of_the_class_names_is_refused(photos):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    model.classes = nn.Identity()
    loaders = make_dataloaders(photos, image_size=8, num_workers=0)
    with pytest.raises(ParameterError, match="A layer of the model is called classes"):
        train_model(model, loaders, num_epochs=1)


def test_a_learning_rate_that_is_a_tensor_is_recorded_as_it_was_in_each_epoch():
    weight = torch.tensor(0.1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(243, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=weight)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    loaders = {name: DataLoader(tensors(8, 0), batch_size=4) for name in ("train", "val")}
    _, history = train_model(model, loaders, None, optimizer, schedule, num_epochs=3)
    assert history["learning_rate"].tolist() == pytest.approx([0.1, 0.01, 0.001])
