"""A trained model for programs without torch: ONNX files, checked against the checkpoint."""

import copy
import json
import os
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnet_ft.data.transforms import Preprocessing, preprocessing_in
from resnet_ft.errors import ParameterError
from resnet_ft.files import atomic_write, user_path
from resnet_ft.inference.predictor import Predictor
from resnet_ft.models.calibration import strangeness
from resnet_ft.models.cutting import WithFeatures, fold_batchnorm
from resnet_ft.reading import in_words

PRECISIONS = ("fp32",)

_OPSET = 18  # what torch's exporter writes without a conversion, and every runtime of today reads
_MOST_IN_FILE = 2**31  # bytes of a protocol buffer


def export_onnx(
    model: str | os.PathLike[str],
    path: str | Path = "model.onnx",
    *,
    precision: str = "fp32",
) -> Path:
    """Write a run's model as one ONNX file (opset 18), which needs neither torch nor this library.

    `model` is the folder of a run or a checkpoint file. Input "images" is uint8 (N, 3, H, W), RGB,
    resized and cropped to the square that the metadata's `preprocessing` describes; N may be any.
    Normalisation, softmax and temperature are inside: output "probabilities" is float32 (N, C),
    and, where the calibration flags unfamiliar images, "strangeness" (N,). The metadata are texts:
    `classes` and `preprocessing` in JSON, `image_size`, `temperature` and, where the calibration
    has them, `unsure_below` (a confidence) and `unfamiliar_above` (a strangeness). Raises
    ParameterError for a network that cannot be exported, and without the extra "onnx".
    """
    if precision not in PRECISIONS:
        raise ParameterError(
            f"precision={precision!r} is unknown. Choose one of {', '.join(PRECISIONS)}."
        )
    predictor, path = Predictor.load(os.fspath(model)), user_path(path)
    with atomic_write(path) as temporary:
        _export(predictor, temporary)
    return path


class FromBytes(nn.Module):
    """What a model answers to RGB bytes (N, 3, H, W): probabilities (N, C), strangeness (N,).

    The latter is left out where the calibration has no limit for it.
    """

    def __init__(self, predictor: Predictor, preprocessing: Preprocessing) -> None:
        super().__init__()
        calibration = predictor.calibration
        self.num_classes, self.temperature = len(predictor.classes), calibration.temperature
        net = predictor.model if calibration.strangest is None else WithFeatures(predictor.model)
        self.net = fold_batchnorm(copy.deepcopy(net).cpu().float())
        self.mean: Tensor
        self.std: Tensor
        self.means: Tensor | None
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])
        self.register_buffer("means", calibration.means)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.net((images.float() * (1 / 255) - self.mean) / self.std)
        probabilities = (outputs[:, : self.num_classes] / self.temperature).softmax(dim=1)
        if self.means is None:
            return (probabilities,)
        return probabilities, strangeness(outputs[:, self.num_classes :], self.means)


def _export(predictor: Predictor, path: Path) -> None:
    _needed("onnxscript")
    preprocessing = preprocessing_in(predictor.transform)
    assert preprocessing is not None  # else the checkpoint could not be loaded
    net = FromBytes(predictor, preprocessing).eval()
    shape = 2, 3, preprocessing.image_size, preprocessing.image_size  # one alone is no dimension
    outputs = ["probabilities", *(["strangeness"] if net.means is not None else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program: Any = torch.onnx.export(
                net,
                (torch.zeros(shape, dtype=torch.uint8),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N")},),
                input_names=["images"],
                output_names=outputs,
                opset_version=_OPSET,
                verbose=False,
            )
        except Exception as error:  # tracing runs the model's own code, which may fail in any way
            raise ParameterError(
                f"{type(predictor.model).__name__} cannot be exported to ONNX "
                f"({in_words(error)}). Its forward pass may do nothing that depends on pixels."
            ) from error
    program.model.metadata_props.update(_metadata(predictor, preprocessing))
    size = sum(one.nbytes for one in net.state_dict().values())
    if size > _MOST_IN_FILE:
        raise ParameterError(f"The model takes {size / 2**30:.1f} GiB, and an ONNX file at most 2.")
    program.save(path, external_data=False)


def _metadata(predictor: Predictor, preprocessing: Preprocessing) -> dict[str, str]:
    known = predictor.calibration
    limits = {"unsure_below": known.threshold, "unfamiliar_above": known.strangest}
    return {
        "classes": json.dumps(predictor.classes, ensure_ascii=False),
        "image_size": str(preprocessing.image_size),
        "preprocessing": json.dumps({**preprocessing.described(), "side": preprocessing.side}),
        "temperature": str(known.temperature),
        **{name: str(limit) for name, limit in limits.items() if limit is not None},
    }


def _needed(name: str) -> Any:
    """A package of the extra "onnx"."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ParameterError(
            f'Export needs {name}, of the extra "onnx": pip install onnx onnxscript onnxruntime'
        ) from error
