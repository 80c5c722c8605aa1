"""fastai: a Learner's test_dl and get_preds."""

from collections.abc import Callable, Sequence
from pathlib import Path

import fastai.callback.progress  # noqa: F401 - gives Learner its no_bar
import pandas as pd
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import Resize
from fastai.vision.data import ImageBlock, Normalize

from predicting import BATCH_SIZE, CLASSES, COLUMNS, IMAGE_SIZE, MEAN, NUM_WORKERS, STD, Weights


def _get_preds(weights: Weights) -> Callable:
    network = weights.network()

    def predict(files: Sequence[Path], csv: Path) -> None:
        block = DataBlock(
            blocks=(ImageBlock, CategoryBlock(vocab=CLASSES)),
            get_y=lambda _: CLASSES[0],
            item_tfms=Resize(IMAGE_SIZE),
            batch_tfms=Normalize.from_stats(MEAN, STD, cuda=False),
        )
        few = list(files[:2])
        loaders = block.dataloaders(few, bs=1, num_workers=0, device=torch.device("cpu"))
        learner = Learner(loaders, network, loss_func=CrossEntropyLossFlat())
        test = loaders.test_dl(list(files), bs=BATCH_SIZE, num_workers=NUM_WORKERS)
        with learner.no_bar(), learner.no_logging():
            found = learner.get_preds(dl=test)[0].max(dim=1)
        rows = {
            "path": files,
            "predicted": [CLASSES[label] for label in found.indices.tolist()],
            "confidence": found.values.numpy(),
        }
        pd.DataFrame(rows, columns=COLUMNS).to_csv(csv, index=False)

    return predict


CONFIGURATIONS = {"get_preds": _get_preds}
