"""A model outside of this library: ONNX in three precisions, and safetensors."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import network, write_image
from exported import colours_run
from safetensors.torch import load_file
from torchvision import models

from resnet_ft import (
    CheckpointError,
    DatasetError,
    ParameterError,
    Predictor,
    Preprocessing,
    compare_exports,
    export_onnx,
    export_safetensors,
    load_checkpoint,
    save_checkpoint,
)

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return colours_run(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def plain(run):
    return export_onnx(run, run.folder.parent / "plain.onnx")


def session_of(path):
    session = onnxruntime.InferenceSession(path)
    return session, session.get_modelmeta().custom_metadata_map


def squares(run, names):
    """The bytes that the network sees of these images: (N, 3, 32, 32)."""
    from resnet_ft.inference.check import photographs

    images, labels = photographs(run, Predictor.load(run), "val", 100, None)
    assert sorted(set(labels)) == list(range(len(names)))
    return images


def test_the_file_takes_bytes_of_any_number_of_images_and_says_what_it_needs(run, plain):
    session, about = session_of(plain)
    assert [(one.name, one.type, one.shape) for one in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["N", 3, 32, 32])
    ]
    assert [one.name for one in session.get_outputs()] == ["probabilities", "strangeness"]
    assert json.loads(about["classes"]) == ["blue", "green", "red"]
    assert about["image_size"] == "32"
    wanted = json.loads(about["preprocessing"])
    assert wanted.pop("side") == 40  # 32 / 0.8
    assert Preprocessing(**wanted) == Preprocessing(32, crop_share=0.8)
    calibration = load_checkpoint(run.best).calibration
    assert float(about["temperature"]) == calibration["temperature"]
    assert float(about["unsure_below"]) == calibration["threshold"]
    assert float(about["unfamiliar_above"]) == calibration["strangest"]
    images = np.zeros((5, 3, 32, 32), np.uint8)
    for count in (1, 5):
        probabilities, strangeness = session.run(None, {"images": images[:count]})
        assert probabilities.shape == (count, 3) and strangeness.shape == (count,)


def test_it_answers_what_the_predictor_answers(run, plain):
    session, about = session_of(plain)
    files = sorted((run.folder.parent / "photos" / "Val").rglob("*.png"))
    predictor = Predictor.load(run)
    table = predictor.predict_folder(files, top_k=3)
    probabilities, strangeness = session.run(None, {"images": squares(run, predictor.classes)})
    best = probabilities.argsort(axis=1)[:, ::-1]
    assert np.array(predictor.classes)[best[:, 0]].tolist() == table["predicted"].tolist()
    for rank, column in enumerate(["confidence", "confidence_2", "confidence_3"]):
        of_rank = np.take_along_axis(probabilities, best[:, rank : rank + 1], axis=1)[:, 0]
        assert of_rank == pytest.approx(table[column].to_numpy(), abs=1e-5)
    unfamiliar = strangeness > float(about["unfamiliar_above"])
    assert unfamiliar.tolist() == table["unfamiliar"].tolist()


def test_a_network_of_timm_without_a_calibration_has_one_output(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_resnet", num_classes=2)
    model.arch = "timm/test_resnet"
    wanted = Preprocessing(32, mean=(0.5,) * 3, std=(0.5,) * 3).described()
    save_checkpoint(tmp_path / "best.pt", model, classes=["a", "b"], preprocessing=wanted)
    session, about = session_of(export_onnx(tmp_path / "best.pt", tmp_path / "model.onnx"))
    assert [one.name for one in session.get_outputs()] == ["probabilities"]
    assert "unsure_below" not in about and "unfamiliar_above" not in about


def test_half_precision_halves_the_file_and_int8_quarters_it(run, plain, capsys):
    files = {"fp32": plain}
    for precision in ("fp16", "int8"):
        files[precision] = export_onnx(run, plain.with_name(precision), precision=precision)
    table = compare_exports(run, files)
    assert table.index.tolist() == ["checkpoint", "fp32", "fp16", "int8"]
    assert table.attrs["images"] == "24 validation images"
    assert table.loc["fp32", "largest_difference"] < 1e-5
    assert 0 < table.loc["fp16", "largest_difference"] < 0.01
    assert (table["agreement"] >= 0.99)[:3].all() and (table["accuracy"] > 0.95).all()
    assert table["megabytes"].tolist() == pytest.approx([44.8, 44.7, 22.4, 11.3], abs=0.5)
    assert (table["milliseconds"] > 0).all()
    assert "int8.onnx" in capsys.readouterr().out


def with_head(run, folder, weights):
    """The checkpoint of the same network with another last layer."""
    checkpoint = load_checkpoint(run.best)
    head = {"fc.weight": weights, "fc.bias": torch.zeros(3)}
    content = replace(checkpoint, state_dict={**checkpoint.state_dict, **head}, calibration=None)
    content.write(folder / "best.pt")
    return folder / "best.pt"


def test_changed_answers_are_refused_unless_asked_for(run, tmp_path, capsys):
    """Half precision holds 1 and 1.001, and nothing between them."""
    rows = torch.tensor([1.0, 1.0001, 0.0])[:, None].repeat(1, 512)  # features are positive
    model, file = with_head(run, tmp_path, rows), tmp_path / "out" / "model.onnx"
    options = {"precision": "fp16", "data_dir": run.folder.parent / "photos"}
    with pytest.raises(ParameterError, match=r"100.0% of the answers .*24 validation images"):
        export_onnx(model, file, **options)
    assert not file.exists() and "fp16.onnx" in capsys.readouterr().out
    assert export_onnx(model, file, **options, allow_changes=True).exists()


def test_weights_that_half_precision_cannot_hold_stay_as_they_are(run, tmp_path):
    rows = 1e8 * load_checkpoint(run.best).state_dict["fc.weight"]
    options = {"precision": "fp16", "data_dir": run.folder.parent / "photos"}
    file = export_onnx(with_head(run, tmp_path, rows), tmp_path / "model.onnx", **options)
    assert file.exists()


def test_a_checkpoint_alone_is_compared_on_noise_and_says_so(run, tmp_path, capsys):
    shutil.copy(run.best, tmp_path / "best.pt")
    export_onnx(tmp_path / "best.pt", tmp_path / "model.onnx")
    assert "On 32 images of noise (no data_dir was given)." in capsys.readouterr().out
    with pytest.raises(DatasetError, match="data_dir="):
        export_onnx(tmp_path / "best.pt", tmp_path / "int8.onnx", precision="int8")
    photos = shutil.copytree(run.folder.parent / "photos", tmp_path / "photos")
    table = compare_exports(
        tmp_path / "best.pt", {"onnx": tmp_path / "model.onnx"}, data_dir=photos
    )
    assert table.attrs["images"] == "24 validation images"
    for file in (photos / "Val").rglob("*.png"):
        file.write_bytes(b"damaged")
    with pytest.raises(DatasetError, match="None of 24 images can be read"):
        compare_exports(tmp_path / "best.pt", {}, data_dir=photos)


def test_safetensors_are_read_by_the_predictor_and_by_torchvision(run, tmp_path):
    file = export_safetensors(run, tmp_path)
    image = write_image(tmp_path / "a.png", colour=(200, 60, 40))
    expected, found = (Predictor.load(one).predict(image) for one in (run, file))
    assert found.to_dict() == expected.to_dict() and found.unfamiliar is not None
    about = json.loads((tmp_path / "model.json").read_text())
    model = models.get_model(about["arch"], num_classes=len(about["classes"]))
    model.load_state_dict(load_file(file))
    (tmp_path / "model.json").write_text(json.dumps({**about, "classes": ["a"]}))
    with pytest.raises(CheckpointError, match="names 1 classes and counts 3"):
        Predictor.load(file)


def test_what_cannot_be_exported_is_named(run, tmp_path, monkeypatch):
    with pytest.raises(ParameterError, match="precision='fp8' is unknown"):
        export_onnx(run, tmp_path / "model.onnx", precision="fp8")
    save_checkpoint(tmp_path / "own.pt", network(), classes=["a", "b"])
    with pytest.raises(CheckpointError, match="transform"):
        export_onnx(tmp_path / "own.pt", tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ParameterError, match='the extra "onnx": pip install onnx onnxscript'):
        export_onnx(run, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
