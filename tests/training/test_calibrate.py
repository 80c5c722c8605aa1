"""What `calibrate` leaves in a run, and what becomes of it."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, network, tensors
from tiny import noise_loaders, train
from torch.utils.data import DataLoader

from resnet_ft import (
    ParameterError,
    Predictor,
    build_model,
    calibrate,
    eval_transform,
    evaluate,
    fine_tune,
    load_checkpoint,
    load_run,
    make_dataloaders,
    save_checkpoint,
    train_model,
)
from resnet_ft.evaluation.predictions import Predictions


@pytest.fixture
def run(tmp_path):
    """A trained run of a few hundred weights."""
    train(noise_loaders(), tmp_path / "run")
    return load_run(tmp_path / "run")


def predicted(run, count=40, *, features=False) -> dict[str, Predictions]:
    model = load_checkpoint(run.best).load_into(network())
    loaders = {"train": tensors(count, 0), "val": tensors(count, 1)}
    return {
        split: evaluate(model, DataLoader(images, batch_size=8), features=features)
        for split, images in loaders.items()
    }


def content_of(path):
    return torch.load(path, weights_only=True)


def test_best_pt_gets_the_calibration_and_keeps_everything_else(run):
    before = content_of(run.best)
    found = calibrate(run, predicted(run)["val"], accuracy=0.5)
    after = content_of(run.best)
    assert after["calibration"]["temperature"] == found.temperature
    assert after["calibration"]["threshold"] == found.threshold is not None
    assert before.keys() == after.keys()
    for name in before.keys() - {"calibration", "state_dict"}:
        assert after[name] == before[name]
    for name, tensor in before["state_dict"].items():
        assert torch.equal(after["state_dict"][name], tensor)
    numbers = json.loads((run.folder / "calibration.json").read_text())
    assert numbers["weights"] == predicted(run)["val"].weights
    assert numbers["after"].keys() == {"log_loss", "brier", "ece", "band", "overconfidence"}


def test_what_a_call_does_not_look_for_stays(run):
    both = predicted(run, features=True)
    assert calibrate(run, both["val"]).means is None  # nothing is known of the training images
    first = calibrate(run, both, accuracy=0.5)
    assert first.means.shape == (2, 8)
    again = calibrate(run, both["val"])
    assert (again.accuracy, again.threshold) == (0.5, first.threshold)
    assert torch.equal(again.means, first.means)
    numbers = json.loads((run.folder / "calibration.json").read_text())
    assert numbers["means"] == [2, 8]  # the shape: a table of numbers is for best.pt


def test_the_saved_evaluation_is_what_is_taken_by_default(run):
    predicted(run)["val"].save(run.folder / "evaluation.csv")
    found = calibrate(run)
    assert found.before == pytest.approx(calibrate(run, predicted(run)["val"]).before, abs=1e-6)


def test_predictions_of_other_weights_are_refused(run):
    other = evaluate(network(), DataLoader(tensors(9, 1), batch_size=8))
    with pytest.raises(ParameterError, match=r"not of the model in .*best\.pt.*Evaluate"):
        calibrate(run, other)
    with pytest.raises(ParameterError, match=r"accuracy=95 should be a share"):
        calibrate(run, predicted(run)["val"], accuracy=95)


def test_a_new_best_makes_it_stale_and_the_predictor_says_so_and_ignores_it(run):
    calibrate(run, predicted(run)["val"], accuracy=0.5)
    checkpoint = load_checkpoint(run.best)
    named = run.folder / "named.pt"
    save_checkpoint(named, checkpoint.load_into(network()), classes=["a", "b"])
    os.replace(named, run.best)  # as training does, which knows of no calibration
    options = {"model": network(), "transform": eval_transform(9)}
    with pytest.warns(UserWarning, match=r"calibration of .*best\.pt is of other weights"):
        assert Predictor.load(run.best, **options).calibration.weights == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # alone, it is a checkpoint without a calibration
        alone = run.folder.parent / "best.pt"
        alone.write_bytes(run.best.read_bytes())
        assert Predictor.load(alone, **options).calibration.weights == ""


def test_a_calibration_in_best_pt_of_other_weights_is_ignored_too(run):
    calibrate(run, predicted(run)["val"])
    content = content_of(run.best)
    content["classes"] = ["a", "b"]
    torch.save(content, run.best)
    options = {"model": network(), "transform": eval_transform(9)}
    assert Predictor.load(run.best, **options).calibration.weights
    content["state_dict"]["6.bias"] += 1
    torch.save(content, run.best)
    with pytest.warns(UserWarning, match="of other weights"):
        assert Predictor.load(run.best, **options).calibration.weights == ""


def test_a_finished_run_is_still_found_finished_and_can_get_more_epochs(run):
    calibrate(run, predicted(run)["val"])
    before = content_of(run.best)
    model, history = train(noise_loaders(), run.folder)
    assert len(history) == 3 and content_of(run.best)["calibration"] == before["calibration"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before["state_dict"][name])
    _, history = train(noise_loaders(), run.folder, num_epochs=5)
    assert len(history) == 5


def test_fine_tune_calibrates_its_run_once(photos, tmp_path, capsys):
    loaders = make_dataloaders(photos, image_size=32, batch_size=4, num_workers=0)
    options = {"epochs": 0, "run_dir": tmp_path / "run"}

    def model():
        torch.manual_seed(0)
        model = build_model("resnet18", 2, weights=None)
        model.pretrained = True  # so that its head is solved
        return model

    trained, _ = fine_tune(model(), loaders, **options)
    assert "temperature" in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pt")
    assert checkpoint.calibration["weights"] == evaluate(trained, loaders["val"]).weights
    changed = (tmp_path / "run" / "best.pt").stat().st_mtime_ns
    fine_tune(model(), loaders, **options)
    assert "temperature" not in capsys.readouterr().out
    assert (tmp_path / "run" / "best.pt").stat().st_mtime_ns == changed
    found = evaluate(checkpoint.load_into(), loaders["val"], calibrated=True)
    assert np.isfinite(found.table["loss"]).all()


@pytest.fixture
def on_drive(tmp_path):
    """A trained run in what looks like Google Drive, where no file is replaced."""
    train(noise_loaders(), tmp_path / "MyDrive" / "run")
    return load_run(tmp_path / "MyDrive" / "run")


def test_on_drive_best_pt_is_written_over_and_leaves_nothing_in_the_trash(on_drive):
    file = on_drive.best.stat().st_ino
    calibrate(on_drive, predicted(on_drive)["val"])
    assert on_drive.best.stat().st_ino == file
    assert load_checkpoint(on_drive.best).calibration is not None
    assert not [*on_drive.folder.glob("*spare*")]


def test_on_drive_a_whole_spare_is_there_before_best_pt_is_written_over(on_drive):
    spares = []

    def write(path):
        found = on_drive.folder / "best.spare.pt"
        spares.append(load_checkpoint(found).created if found.exists() else None)
        load_checkpoint(on_drive.best).write(path)

    on_drive.rewrite_best(write)
    assert spares == [None, load_checkpoint(on_drive.best).created]


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_half_a_best_pt_becomes_whole_from_its_spare(on_drive, share):
    whole = on_drive.best.read_bytes()
    (on_drive.folder / "best.spare.pt").write_bytes(whole)
    on_drive.best.write_bytes(whole[: int(share * len(whole))])
    assert load_run(on_drive.folder).best.read_bytes() == whole
    assert not [*on_drive.folder.glob("*spare*")]


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_half_a_spare_leaves_best_pt_alone(on_drive, share):
    whole = on_drive.best.read_bytes()
    (on_drive.folder / "best.spare.pt").write_bytes(whole[: int(share * len(whole))])
    assert load_run(on_drive.folder).best.read_bytes() == whole
    assert not [*on_drive.folder.glob("*spare*")]
    train(noise_loaders(), on_drive.folder)  # and it is found finished


_CALIBRATES_FOR_EVER = """
import sys, torch
from conftest import tensors
from torch.utils.data import DataLoader
from resnet_ft import calibrate, evaluate, load_checkpoint, load_run
torch.set_num_threads(1)
run = load_run(sys.argv[1])
model = load_checkpoint(run.best).load_into()
images = tensors(8, 0)
found = evaluate(model, DataLoader(images, batch_size=8))
print("begins", flush=True)
while True:
    calibrate(run, found, accuracy=float(torch.rand(()) + 1) / 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["MyDrive", "local"])
def test_a_kill_at_any_moment_leaves_a_whole_best_pt(place, tmp_path):
    loaders, folder = noise_loaders(), tmp_path / place / "run"
    torch.manual_seed(0)
    model = build_model("resnet18", 2, weights=None)
    train_model(model, loaders, num_epochs=1, run_dir=folder)
    expected = content_of(folder / "best.pt")["state_dict"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    for kill in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", _CALIBRATES_FOR_EVER, str(folder)],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
        )
        while "begins" not in (line := process.stdout.readline()):
            assert line
        time.sleep(0.1 + 0.3 * kill)
        process.kill()
        process.wait()
        found = load_checkpoint(load_run(folder).best)
        for name, tensor in expected.items():
            assert torch.equal(found.state_dict[name], tensor)
        assert not [*Path(folder).glob("best.spare*")]
