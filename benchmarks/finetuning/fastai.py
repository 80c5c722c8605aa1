"""fastai: vision_learner and fine_tune, with the presizing and augmentation of its book."""

import tempfile
from pathlib import Path

import torch
from fastai.callback import progress, schedule  # noqa: F401 - no_bar and fine_tune of Learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner

from finetuning import ARCH, EPOCHS, IMAGE_SIZE, NUM_WORKERS


def _fine_tune(data_dir: Path, weights: Path, seed: int) -> dict[str, float]:
    set_seed(seed)
    dataloaders = ImageDataLoaders.from_folder(
        data_dir,
        train="Train",
        valid="Val",
        item_tfms=Resize(IMAGE_SIZE * 460 // 224),
        batch_tfms=aug_transforms(size=IMAGE_SIZE, min_scale=0.75),
        num_workers=NUM_WORKERS,
        device=torch.device("cpu"),
    )
    with tempfile.TemporaryDirectory() as scratch:
        learner = vision_learner(
            dataloaders,
            ARCH,
            metrics=accuracy,
            path=scratch,
            pretrained_cfg_overlay={"file": str(weights)},
        )
        with learner.no_bar(), learner.no_logging():
            learner.fine_tune(EPOCHS)
    epochs = [float(values[2]) for values in learner.recorder.values]
    return {"accuracy": epochs[-1], "best_epoch": max(epochs)}


RECIPES = {"fine_tune": _fine_tune}
