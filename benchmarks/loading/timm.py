"""timm: create_dataset and create_loader, without colour jitter, which the others do not do."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader

from loading import BATCH_SIZE, IMAGE_SIZE, NUM_WORKERS


def _create_loader(data_dir: Path, _scratch: Path, *, use_prefetcher: bool) -> Iterable:
    return create_loader(
        create_dataset("", root=str(data_dir / "Train")),
        input_size=(3, IMAGE_SIZE, IMAGE_SIZE),
        batch_size=BATCH_SIZE,
        is_training=True,
        color_jitter=0.0,
        num_workers=NUM_WORKERS,
        device=torch.device("cpu"),
        use_prefetcher=use_prefetcher,
    )


CONFIGURATIONS = {
    "use_prefetcher=True": partial(_create_loader, use_prefetcher=True),
    "use_prefetcher=False": partial(_create_loader, use_prefetcher=False),
}
