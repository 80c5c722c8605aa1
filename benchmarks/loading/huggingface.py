"""Hugging Face datasets: imagefolder and with_transform, as in their image-classification example.

Their example uses torchvision's transforms; here also their second version, which may be faster.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from datasets import load_dataset
from torch.utils.data import DataLoader

from loading import BATCH_SIZE, NUM_WORKERS
from loading.torchvision import TRANSFORMS


def _image_folder(data_dir: Path, scratch: Path, *, transform: str) -> Iterable:
    augment = TRANSFORMS[transform]

    def transformed(rows: dict) -> dict:
        images = [augment(image.convert("RGB")) for image in rows["image"]]
        return {"pixel_values": images, "label": rows["label"]}

    dataset = load_dataset(
        "imagefolder", data_dir=str(data_dir / "Train"), split="train", cache_dir=str(scratch)
    )
    return DataLoader(
        dataset.with_transform(transformed),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=NUM_WORKERS,
        persistent_workers=True,
        collate_fn=_collate,
    )


def _collate(examples: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([example["pixel_values"] for example in examples])
    return images, torch.tensor([example["label"] for example in examples])


CONFIGURATIONS = {
    "transforms": partial(_image_folder, transform="transforms"),
    "transforms.v2": partial(_image_folder, transform="transforms.v2"),
}
