"""Hugging Face transformers: the image-classification pipeline, of a timm network."""

import csv as csv_files
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import pipeline

from predicting import (
    BATCH_SIZE,
    CLASSES,
    COLUMNS,
    IMAGE_SIZE,
    MEAN,
    NUM_WORKERS,
    SIDE,
    STD,
    Weights,
)


def _saved(weights: Weights) -> Path:
    """The weights as the Hub has them: a timm network's names are torchvision's."""
    folder = weights.file.with_suffix(".hub")
    folder.mkdir(exist_ok=True)
    about = {
        "architecture": weights.arch,
        "architectures": ["TimmWrapperForImageClassification"],
        "model_type": "timm_wrapper",
        "num_classes": len(CLASSES),
        "label_names": CLASSES,
        "pretrained_cfg": {
            "input_size": [3, IMAGE_SIZE, IMAGE_SIZE],
            "crop_pct": IMAGE_SIZE / SIDE,
            "interpolation": "bilinear",
            "mean": MEAN,
            "std": STD,
        },
    }
    (folder / "config.json").write_text(json.dumps(about))
    state = torch.load(weights.file, weights_only=True)
    named = {f"timm_model.{name}": tensor for name, tensor in state.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _pipeline(weights: Weights) -> Callable:
    classify = pipeline(
        "image-classification",
        model=str(_saved(weights)),
        device="cpu",
        batch_size=BATCH_SIZE,
        num_workers=NUM_WORKERS,
    )

    def predict(files: Sequence[Path], csv: Path) -> None:
        with csv.open("w", newline="", encoding="utf-8") as file:
            table = csv_files.writer(file)
            table.writerow(COLUMNS)
            answers = classify([str(path) for path in files], top_k=1)
            for path, ((best),) in zip(files, answers, strict=True):
                table.writerow([path, best["label"], best["score"]])

    return predict


CONFIGURATIONS = {"pipeline": _pipeline}
