import pytest
import torch
from conftest import network, tensors
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from resnet_ft import (
    ParameterError,
    engine,
    evaluate,
    find_lr,
    fine_tune,
    freeze,
    freeze_batchnorm,
    make_dataloaders,
    precompute,
    train_model,
)
from resnet_ft.models.check import check_model


def of_one_channel():
    model = resnet18(num_classes=2)
    model.conv1 = nn.Conv2d(1, 64, 7, stride=2)
    return model


def loaders_of(photos, batch_size=4):
    return make_dataloaders(photos, image_size=32, batch_size=batch_size, num_workers=0)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (of_one_channel(), r"\(1, 3, 32, 32\) in float32.*conv1, takes 1 channels in float32"),
        (resnet18(num_classes=2).half(), r"conv1, takes 3 channels in float16.*model\.float\(\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), "1, takes 7 features"),
        (nn.Conv2d(3, 2, 1), r"gives \[2, 32, 32\] for an image, where logits"),
    ],
)
def test_a_model_that_cannot_take_the_images_is_refused_before_any_work(photos, model, said):
    loaders = loaders_of(photos)
    for work in (
        lambda: train_model(model, loaders, num_epochs=1),
        lambda: find_lr(model, loaders["train"]),
        lambda: evaluate(model, loaders["val"]),
    ):
        with pytest.raises(ParameterError, match=said):
            work()


def test_fine_tune_and_precompute_refuse_it_before_the_images_go_through_the_model(photos):
    model, loaders = of_one_channel(), loaders_of(photos)
    with pytest.raises(ParameterError, match="takes 1 channels"):
        fine_tune(model, loaders, epochs=1)
    freeze(model, until="fc")
    with pytest.raises(ParameterError, match="takes 1 channels"):
        precompute(model, loaders)


def test_one_output_for_two_classes_is_refused_and_the_run_can_begin_with_two(photos, tmp_path):
    loaders, run_dir = loaders_of(photos), tmp_path / "run"
    with pytest.raises(ParameterError, match=r"gives \[1\] for an image.*2 classes"):
        train_model(resnet18(num_classes=1), loaders, num_epochs=1, run_dir=run_dir)
    train_model(resnet18(num_classes=2), loaders, num_epochs=1, run_dir=run_dir)
    assert (run_dir / "best.pt").exists()


@pytest.mark.parametrize(("batch_size", "parts"), [(1, 1), (3, 2)])
def test_batches_of_one_small_image_are_refused_where_batchnorm_learns(
    photos, monkeypatch, batch_size, parts
):
    """Of 32 pixels, the last stage of a ResNet leaves one."""
    monkeypatch.setattr(engine.accelerator(), "gradient_accumulation_steps", parts)
    loaders = loaders_of(photos, batch_size)
    with pytest.raises(ParameterError, match=r"layer4\.0\.bn1.*single image.*freeze_batchnorm"):
        train_model(resnet18(num_classes=2), loaders, num_epochs=1)
    model = resnet18(num_classes=2)
    freeze_batchnorm(model)
    assert len(train_model(model, loaders, num_epochs=1)[1]) == 1


def test_the_last_batch_of_a_loader_counts():
    """Nine images in batches of four leave one; of 9 pixels, `network` leaves 4 x 4."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(243, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    loader = DataLoader(tensors(9, 0), batch_size=4)
    with pytest.raises(ParameterError, match=r"Batch normalisation \(2\)"):
        check_model(model, loader, micro_batches=1)
    check_model(model, DataLoader(tensors(9, 0), batch_size=4, drop_last=True), micro_batches=1)
    check_model(network(), DataLoader(tensors(9, 0), batch_size=1), micro_batches=1)


def test_the_trial_leaves_no_trace(small_network):
    before = {name: tensor.clone() for name, tensor in small_network.state_dict().items()}
    state = torch.get_rng_state()
    check_model(small_network, DataLoader(tensors(9, 0), batch_size=4), micro_batches=1)
    assert small_network.training and torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in small_network.state_dict().items()
    )


def test_more_outputs_than_classes_are_refused(photos):
    """Trained, its best.pt could not be used: nobody knows what the other outputs mean."""
    with pytest.raises(ParameterError, match=r"gives \[10\] for an image.*2 classes"):
        train_model(resnet18(num_classes=10), loaders_of(photos), num_epochs=1)
