"""This library: the head alone, and fine_tune with its defaults; caches are empty."""

import tempfile
from functools import partial
from pathlib import Path

from finetuning import ARCH, IMAGE_SIZE, MEAN, NUM_WORKERS, STD
from resnet_ft import (
    Preprocessing,
    build_model,
    eval_transform,
    evaluate,
    fine_tune,
    make_dataloaders,
    train_transform,
)

PREPROCESSING = Preprocessing(IMAGE_SIZE, MEAN, STD)


def _fine_tune(data_dir: Path, weights: Path, seed: int, **options: object) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        dataloaders = make_dataloaders(
            data_dir,
            train=train_transform(PREPROCESSING),
            val=eval_transform(PREPROCESSING),
            num_workers=NUM_WORKERS,
            cache_dir=Path(scratch) / "images",
            seed=seed,
        )
        classes = dataloaders["train"].dataset.classes
        model = build_model(f"timm/{ARCH}", len(classes), weights=weights)
        model, history = fine_tune(
            model,
            dataloaders,
            seed=seed,
            run_dir=Path(scratch) / "run",
            cache_dir=Path(scratch) / "features",
            **options,
        )
        accuracy = evaluate(model, dataloaders["val"]).accuracy
    head = history.iloc[0]
    return {
        "accuracy": accuracy,
        "head": float(head["val_accuracy"]),
        "head_cross_validated": float(head["train_accuracy"]),
        "last_epoch": float(history["val_accuracy"].iloc[-1]),
        "epochs": len(history) - 1,
    }


RECIPES = {"head": partial(_fine_tune, epochs=0), "fine_tune": _fine_tune}
