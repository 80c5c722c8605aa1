"""Every path once on a GPU: `make test-gpu`. The other tests compute on the processor."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from resnet_ft import (
    MixedLoader,
    Predictor,
    Run,
    TrainingError,
    build_model,
    engine,
    evaluate,
    find_lr,
    freeze,
    freeze_batchnorm,
    load_checkpoint,
    make_dataloaders,
    precompute,
    train_model,
    train_transform,
)
from resnet_ft.data.batches import device_batches
from resnet_ft.features.solver import solve_head

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def run(name, precision="bf16", **options):
    program = Path(__file__).with_name("gpu.py")
    environment = {
        **os.environ,
        "ACCELERATE_MIXED_PRECISION": precision,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # for deterministic matrix products
    }
    command = [sys.executable, str(program), name, json.dumps(options, default=str)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def loaders(photos):
    return make_dataloaders(photos, image_size=32, batch_size=5, num_workers=0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    built = build_model("resnet18", 2, weights=None)
    built.pretrained = True
    return built


def assert_equal(found, expected):
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        for name, value in expected.items():
            if name not in ("seconds", "epoch_seconds", "rng", "rng_before_phase", "rows", "row"):
                assert_equal(found[name], value)
    elif isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_resumed_mid_epoch_is_the_undisturbed_one_to_the_last_bit(tmp_path, precision):
    run("loop", precision, run_dir=tmp_path / "whole")
    for at in ((1, 4), (2, 9), (3, 2)):
        assert "interrupted" in run("loop", precision, run_dir=tmp_path / "some", stop_at=at)
    run("loop", precision, run_dir=tmp_path / "some")
    (_, found), (_, expected) = (Run(tmp_path / one).resume_state() for one in ("some", "whole"))
    for part in ("model", "optimizer", "scheduler", "scaler", "callbacks", "best"):
        assert_equal(found[part], expected[part])
    assert (found["scaler"] is not None) == (precision == "fp16")
    histories = [Run(tmp_path / one).history.drop(columns="seconds") for one in ("some", "whole")]
    pd.testing.assert_frame_equal(*histories)


def test_a_run_begun_on_a_gpu_is_resumed_on_a_processor_and_back(tmp_path, monkeypatch):
    run("loop", "fp16", run_dir=tmp_path / "run", stop_at=(1, 4))
    with monkeypatch.context() as without:
        without.setenv("CUDA_VISIBLE_DEVICES", "")
        run("loop", "no", run_dir=tmp_path / "run", stop_at=(2, 5))
    run("loop", "bf16", run_dir=tmp_path / "run")
    assert Run(tmp_path / "run").history["epoch"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_recipe_learns_and_its_checkpoint_is_read_on_a_processor(photos, tmp_path, precision):
    options = {"run_dir": tmp_path / "run", "photos": photos, "cache": tmp_path / "cache"}
    history = pd.DataFrame(json.loads(run("recipe", precision, **options).splitlines()[-1]))
    assert history["epoch"].tolist() == [0, 1, 2]
    assert np.isfinite(history.iloc[1:].to_numpy(float)).all()  # the head alone has no average
    best = tmp_path / "run" / "best.pt"
    image = photos / "Val/red/0.png"
    here = pd.Series(dict(Predictor.load(best).predict(image).top))
    code = "import json; from resnet_ft import Predictor; print(json.dumps(dict(Predictor.load("
    code += f"{str(best)!r}).predict({str(image)!r}).top)))"
    without = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=without, capture_output=True, text=True, check=True
    )
    there = pd.Series(json.loads(done.stdout.splitlines()[-1]))
    assert (here - there).abs().max() < 0.02


@pytest.mark.parametrize("until", ["layer1", "layer2", "layer3", "layer4", "fc"])
def test_features_are_what_the_frozen_layers_put_out(model, loaders, tmp_path, until):
    freeze(model, until=until)
    head, features = precompute(model, loaders, cache_dir=tmp_path)
    model.to(engine.device()).eval()
    images, _ = next(iter(loaders["val"]))
    rows, _ = next(iter(features["val"]))
    with torch.no_grad():
        found, expected = head.eval()(rows.cuda()), model(images.cuda())
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


def test_a_batch_that_is_too_large_for_the_card_goes_in_parts(tmp_path):
    class Wide(nn.Module):
        """64 MiB per image, and as much for its gradients."""

        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Conv2d(3, 64, 1), nn.Linear(64, 2)

        def forward(self, images):
            return self.head(self.layer(images.repeat(1, 1, 64, 64)).relu().mean((2, 3)))

    data = torch.utils.data.TensorDataset(torch.randn(16, 3, 8, 8), torch.arange(16) % 2)
    loaders = {name: torch.utils.data.DataLoader(data, batch_size=16) for name in ("train", "val")}
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0 * 2**30 / whole)
    try:
        with pytest.warns(UserWarning, match="16 images at once do not fit into memory"):
            model, history = train_model(Wide(), loaders, num_epochs=1)
        with pytest.warns(UserWarning, match=r"16 images at once do not fit.*in \d parts"):
            assert len(evaluate(model, loaders["val"]).table) == 16
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.isfinite(history["train_loss"]).all()


def test_frozen_batchnorm_stands_still_and_the_best_weights_come_back(model, loaders):
    freeze_batchnorm(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trained, history = train_model(model, loaders, num_epochs=2)
    assert trained is model and next(model.parameters()).is_cuda
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer.cpu(), before[name])
    scored = evaluate(model, loaders["val"])
    assert scored.accuracy == pytest.approx(history["val_accuracy"].max())


def test_the_head_is_solved_as_on_a_processor(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 12, generator=generator)
    labels = (features[:, 0] > 0).long()
    there = solve_head(features.half(), labels, 2)
    monkeypatch.setattr(engine, "device", lambda: torch.device("cpu"))
    here = solve_head(features.half(), labels, 2)
    assert there.weight.is_cuda and here.weight.device.type == "cpu"
    assert here.penalty == there.penalty
    torch.testing.assert_close(there.weight.cpu(), here.weight, rtol=0.01, atol=1e-3)


def test_the_learning_rate_finder_and_a_folder_of_predictions(model, loaders, photos, tmp_path):
    found = find_lr(model, loaders["train"], num_steps=20)
    assert len(found.history) >= 3
    train_model(model, loaders, num_epochs=1, run_dir=tmp_path / "run")
    predictor = Predictor(
        load_checkpoint(tmp_path / "run/best.pt").load_into(),
        ["blue", "red"],
        loaders["val"].dataset.transform,
    )
    table = predictor.predict_folder(photos / "Val", tmp_path / "p.csv", num_workers=0)
    assert len(table) == 6 and table["error"].isna().all()


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_no_step_waits_for_the_gpu_and_every_batch_is_copied_from_pinned_memory(photos, precision):
    said = json.loads(run("steps_that_wait_for_nothing", precision, photos=photos).splitlines()[-1])
    assert said["steps"] == 3 * (9 + 3) and said["copies"] >= said["steps"] and said["pinned"]


def test_a_step_that_float16_skips_leaves_weights_and_average_alone():
    said = json.loads(run("overflow", "fp16", num_epochs=4).splitlines()[-1])
    assert sum(said["skipped"]) == sum(skipped for skipped, _ in said["found"]) > 0
    assert all(skipped != changed for skipped, changed in said["found"])


@pytest.mark.parametrize("strength", ["light", "medium", "strong"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_finished_on_the_gpu_are_those_of_the_processor(photos, strength, workers):
    loader = make_dataloaders(
        photos,
        image_size=32,
        batch_size=2,
        train=train_transform(32, strength=strength),
        num_workers=workers,
    )["train"]
    expected = list(loader)
    loader.batch_sampler.set_epoch(0)
    found = list(device_batches(loader))  # all are kept: none may be overwritten
    assert len(found) == len(expected)
    tolerance = 1e-5 if engine.compute_dtype() == torch.float32 else 0.02
    for (images, labels), (right, true) in zip(found, expected, strict=True):
        assert images.is_cuda and images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(images.float().cpu(), right, rtol=tolerance, atol=tolerance)
        assert torch.equal(labels, true) and labels.is_pinned()


def test_images_are_mixed_on_the_gpu_as_on_the_processor(loaders):
    mixed = MixedLoader(loaders["train"], 2, "both")
    expected = list(mixed)
    loaders["train"].batch_sampler.set_epoch(0)
    for (images, labels), (right, true) in zip(device_batches(mixed), expected, strict=True):
        torch.testing.assert_close(images.float().cpu(), right, rtol=0.02, atol=0.03)
        torch.testing.assert_close(labels.cpu(), true)


def test_a_step_that_is_not_finite_names_itself(model, loaders):
    class Nan(nn.Module):
        def forward(self, logits, labels):
            return logits.sum() * float("nan")

    with pytest.raises(TrainingError, match="loss became nan in epoch 1, step 1"):
        train_model(model, loaders, Nan(), num_epochs=1)
