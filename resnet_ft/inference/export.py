"""A trained model for programs without this library: ONNX and safetensors, checked when written."""

import copy
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from resnet_ft.errors import ParameterError, needed
from resnet_ft.files import atomic_write, user_path
from resnet_ft.inference.check import (
    AnyModel,
    checkpoint_file,
    compare_exports,
    photographs,
    square,
)
from resnet_ft.inference.predictor import Predictor
from resnet_ft.models.calibration import strangeness
from resnet_ft.models.checkpoint import load_checkpoint
from resnet_ft.models.cutting import WithFeatures, fold_batchnorm
from resnet_ft.reading import in_words

PRECISIONS = ("fp32", "fp16", "int8")

_OPSET = 18  # what torch's exporter writes without a conversion
_CALIBRATED_ON = 100  # training images
_LARGE = 256  # numbers, from which on half of their bytes is worth a conversion
_QUANTISED = ("Conv", "Gemm", "Relu", "Clip")  # the last two end the range of a convolution
_MOST_CHANGED, _MOST_LOST = 0.01, 0.02  # of all answers; of the accuracy, for int8


def export_onnx(
    model: AnyModel,
    path: str | Path = "model.onnx",
    *,
    precision: str = "fp32",
    data_dir: str | Path | None = None,
    allow_changes: bool = False,
) -> Path:
    """Write a run's model as one ONNX file (opset 18), which needs neither torch nor this library.

    `model` is the folder of a run or a checkpoint file. Input "images" is uint8 (N, 3, H, W), RGB,
    for any N: squares as the metadata's `preprocessing` (JSON) describes them. Normalisation,
    temperature and softmax are inside. Outputs are "probabilities", float32 (N, C), and, where the
    calibration flags unfamiliar images, "strangeness" (N,). The metadata also have `classes`
    (JSON), `image_size`, `temperature`, and the limits `unsure_below` and `unfamiliar_above`.

    "fp16" stores weights in half precision, and computes with floats. "int8" quantises convolutions
    and linear layers (static, QDQ, per channel) on 100 training images, of the run's `data_source`
    or in `data_dir`. The file is compared with the checkpoint (see `compare_exports`). Raises
    ParameterError where more than 1% of the answers change, or for int8 the accuracy falls by more
    than 2 points, unless you `allow_changes`, and for a network that cannot be exported;
    DatasetError where int8 finds no images.
    """
    if precision not in PRECISIONS:
        raise ParameterError(
            f"precision={precision!r} is unknown. Choose one of {', '.join(PRECISIONS)}."
        )
    onnx, *_ = (needed(name, "onnx") for name in ("onnx", "onnxscript", "onnxruntime"))
    predictor, path = Predictor.load(os.fspath(model)), user_path(path)
    with tempfile.TemporaryDirectory(prefix="resnet_ft-") as folder:
        plain, made = Path(folder, "plain.onnx"), Path(folder, f"{precision}.onnx")
        _export(predictor, plain)
        if precision == "int8":
            images, _ = photographs(model, predictor, "train", _CALIBRATED_ON, data_dir)
            _quantise(plain, made, images)
        graph = onnx.load(made if made.exists() else plain)
        if precision == "fp16":
            _halve(graph.graph, onnx)
        onnx.helper.set_model_props(graph, _metadata(predictor))
        onnx.save(graph, made)
        _check(model, made, data_dir, allow_changes=allow_changes)
        return _copied(made, path)


def export_safetensors(
    model: AnyModel, folder: str | Path = "safetensors", *, data_dir: str | Path | None = None
) -> Path:
    """Write a run's model as model.safetensors and model.json into a folder; returns the former.

    `Predictor.load` reads it. Without this library, torchvision's `get_model(arch,
    num_classes=...)` or timm's `create_model` makes the network, which takes the tensors with
    `load_state_dict(safetensors.torch.load_file(...))`. The JSON file has `arch`, `classes`,
    `preprocessing` (as `Preprocessing` has it), `calibration` and `scores`. The file is compared
    with the checkpoint as in `export_onnx`.
    """
    checkpoint, folder = load_checkpoint(checkpoint_file(model)), user_path(folder)
    about: dict[str, Any] = {**vars(checkpoint), "state_dict": [*checkpoint.state_dict]}
    if checkpoint.calibration and (means := checkpoint.calibration["means"]) is not None:
        exact = [[float(f"{one:.5g}") for one in row] for row in means.tolist()]  # of float16
        about["calibration"] = {**checkpoint.calibration, "means": exact}
    with tempfile.TemporaryDirectory(prefix="resnet_ft-") as made:
        weights = Path(made, "model.safetensors")
        save_file({name: one.clone() for name, one in checkpoint.state_dict.items()}, weights)
        weights.with_suffix(".json").write_text(json.dumps(about, indent=1))
        _check(model, weights, data_dir)
        _copied(weights.with_suffix(".json"), folder / "model.json")
        return _copied(weights, folder / weights.name)


class FromBytes(nn.Module):
    """What a model answers to RGB bytes (N, 3, H, W): probabilities (N, C), strangeness (N,).

    The latter is left out where the calibration has no limit for it.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        calibration, wanted = predictor.calibration, square(predictor)
        self.num_classes, self.temperature = len(predictor.classes), calibration.temperature
        net = predictor.model if calibration.strangest is None else WithFeatures(predictor.model)
        self.net = fold_batchnorm(copy.deepcopy(net).cpu().float())
        self.mean: Tensor
        self.std: Tensor
        self.means: Tensor | None
        self.register_buffer("mean", torch.tensor(wanted.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(wanted.std)[:, None, None])
        self.register_buffer("means", calibration.means)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.net((images.float() * (1 / 255) - self.mean) / self.std)
        probabilities = (outputs[:, : self.num_classes] / self.temperature).softmax(dim=1)
        if self.means is None:
            return (probabilities,)
        return probabilities, strangeness(outputs[:, self.num_classes :], self.means)


def _export(predictor: Predictor, path: Path) -> None:
    net, size = FromBytes(predictor).eval(), square(predictor).image_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                net,
                (torch.zeros(2, 3, size, size, dtype=torch.uint8),),  # a batch of 1 stays 1
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N")},),
                input_names=["images"],
                output_names=["probabilities", "strangeness"][: 1 if net.means is None else 2],
                opset_version=_OPSET,
                verbose=False,
            )
        program.save(path, external_data=False)
    except Exception as error:  # tracing runs the model's own code, which may fail in any way
        raise ParameterError(
            f"{type(predictor.model).__name__} cannot be exported to ONNX ({in_words(error)})."
        ) from error


def _metadata(predictor: Predictor) -> dict[str, str]:
    known, wanted = predictor.calibration, square(predictor)
    limits = {"unsure_below": known.threshold, "unfamiliar_above": known.strangest}
    return {
        "classes": json.dumps(predictor.classes),
        "image_size": str(wanted.image_size),
        "preprocessing": json.dumps({**wanted.described(), "side": wanted.side}),
        "temperature": str(known.temperature),
        **{name: str(limit) for name, limit in limits.items() if limit is not None},
    }


def _halve(graph: Any, onnx: Any) -> None:
    """Store weights in half precision; runtimes convert them once, when they load the file."""
    for tensor in graph.initializer:
        name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
        fits = abs(values).max(initial=0) <= np.finfo(np.float16).max
        if values.dtype == np.float32 and values.size >= _LARGE and fits:
            half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.half")
            tensor.CopyFrom(half)
            cast = onnx.helper.make_node("Cast", [half.name], [name], to=onnx.TensorProto.FLOAT)
            graph.node.insert(0, cast)


def _quantise(plain: Path, made: Path, images: np.ndarray) -> None:
    quantization: Any = needed("onnxruntime.quantization", "onnx")
    batches = iter([{"images": image[None]} for image in images])
    prepared = plain.with_name("prepared.onnx")
    quantization.shape_inference.quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        made,
        SimpleNamespace(get_next=lambda: next(batches, None)),
        op_types_to_quantize=[*_QUANTISED],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
    )


def _check(
    model: AnyModel, file: Path, data_dir: str | Path | None, *, allow_changes: bool = False
) -> None:
    """Print how a file compares with its checkpoint. Raises ParameterError for too many changes."""
    table = compare_exports(model, {file.name: file}, data_dir=data_dir)
    before, after = table.to_dict("records")
    print(f"{table.round(4).to_string()}\nOn {table.attrs['images']}.")
    lost, changed = before["accuracy"] - after["accuracy"], 1 - after["agreement"]
    by_accuracy = file.name == "int8.onnx" and not np.isnan(lost)
    if (lost > _MOST_LOST if by_accuracy else not changed <= _MOST_CHANGED) and not allow_changes:
        raise ParameterError(
            f"{changed:.1%} of the answers are not the checkpoint's ({table.attrs['images']}; see "
            "the table), so nothing is written. Choose another precision, or allow_changes=True."
        )


def _copied(file: Path, path: Path) -> Path:
    with atomic_write(path) as temporary:
        shutil.copyfile(file, temporary)
    return path
