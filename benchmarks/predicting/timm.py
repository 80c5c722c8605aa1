"""timm: the steps of its inference.py, which collects the answers and writes them with pandas."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from timm import create_model
from timm.data import ImageDataset, create_loader
from timm.data.readers.reader import Reader

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


class _Files(Reader):
    """Its own readers take whole folders."""

    def __init__(self, files: Sequence[Path]):
        super().__init__()
        self.files = files

    def __getitem__(self, row: int) -> tuple:
        return self.files[row].open("rb"), 0

    def __len__(self) -> int:
        return len(self.files)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return str(self.files[index])


def _inference(weights: Weights, *, channels_last: bool) -> Callable:
    network = create_model(weights.arch, checkpoint_path=str(weights.file)).eval()
    memory = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=memory)

    @torch.inference_mode()
    def predict(files: Sequence[Path], csv: Path) -> None:
        loader = create_loader(
            ImageDataset("", reader=_Files(files)),
            input_size=(3, IMAGE_SIZE, IMAGE_SIZE),
            batch_size=BATCH_SIZE,
            interpolation="bilinear",
            mean=MEAN,
            std=STD,
            crop_pct=IMAGE_SIZE / SIDE,
            num_workers=NUM_WORKERS,
            device=torch.device("cpu"),
        )
        values, labels = [], []
        for images, _ in loader:
            found = network(images.contiguous(memory_format=memory)).softmax(dim=1).topk(1)
            values.append(found.values[:, 0])
            labels.append(found.indices[:, 0])
        rows = {
            "path": files,
            "predicted": [CLASSES[label] for label in torch.cat(labels).tolist()],
            "confidence": torch.cat(values).numpy(),
        }
        pd.DataFrame(rows, columns=COLUMNS).to_csv(csv, index=False)

    return predict


CONFIGURATIONS = {
    "inference.py": partial(_inference, channels_last=False),
    "inference.py --channels-last": partial(_inference, channels_last=True),
}
