"""Which pretrained network suits these images best, by the head that can be solved on each?"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from resnet_ft.data.batches import EpochBatchSampler, ImageLoader
from resnet_ft.data.dataset import ImageDataset
from resnet_ft.data.transforms import eval_transform
from resnet_ft.errors import ResnetFtError
from resnet_ft.evaluation.predictions import evaluate
from resnet_ft.evaluation.scores import wilson_interval
from resnet_ft.features.solver import solve_head
from resnet_ft.models.build import build_model
from resnet_ft.models.preprocessing import preprocessing_of

_COLUMNS = ("arch", "accuracy", "from", "to", "seconds", "megabytes", "note")


def compare_backbones(
    dataloaders: Mapping[str, DataLoader],
    archs: Sequence[str],
    *,
    weights: Mapping[str, str | Path] | None = None,
    image_size: int = 224,
    seed: int = 0,
) -> pd.DataFrame:
    """How well a head does on the features of several pretrained networks, the best first.

    Each network of `build_model` sees the training images of `make_dataloaders` once, at
    `image_size` and as its weights want them. A row has `arch`; `accuracy`, cross-validated, with
    its 95% interval `from` and `to`; the `seconds` that it took; its size in `megabytes`; and
    `note`: where a network or its weights cannot be had, the reason. `weights` are files by `arch`.
    """
    loader: Any = dataloaders["train"]
    images, rows = loader.dataset, list[dict[str, object]]()
    for arch in archs:
        source, started = (weights or {}).get(arch, "DEFAULT"), time.perf_counter()
        try:
            model = build_model(arch, len(images.classes), weights=source)
            transform = eval_transform(preprocessing_of(arch, source, image_size=image_size))
        except ResnetFtError as error:
            rows.append({"arch": arch, "note": str(error)})
            continue
        dataset = ImageDataset(images.images, images.labels, images.classes, transform)
        batches = EpochBatchSampler(len(dataset), loader.batch_sampler.batch_size)
        once = ImageLoader(dataset, batches, loader.num_workers)
        features = torch.from_numpy(np.asarray(evaluate(model, once, features=True).features))
        labels = torch.from_numpy(dataset.labels)
        solved = solve_head(features, labels, len(dataset.classes), seed=seed)
        accuracy = (solved.probabilities.argmax(dim=1) == labels).double().mean().item()
        interval = wilson_interval(accuracy, len(labels))
        size = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
        row = (arch, accuracy, *interval, time.perf_counter() - started, size, "")
        rows.append(dict(zip(_COLUMNS, row, strict=True)))
    return pd.DataFrame(rows, columns=_COLUMNS).sort_values("accuracy", ascending=False)
