"""The Hugging Face Trainer on an imagefolder, as in their image-classification example.

The network is torchvision's, so that all train the same; the Trainer asks of it a dict with a loss.
"""

from functools import partial
from pathlib import Path

import torch
from datasets import DatasetDict, load_dataset
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from training import BATCH_SIZE, EPOCHS, NUM_WORKERS
from training.clock import Clock
from training.layers import TRAINED, train_only
from training.tutorial import TRANSFORMS


class _Classifier(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class _Laps(TrainerCallback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.clock.lap()

    def on_evaluate(self, *_: object, **__: object) -> None:
        self.clock.lap()


def _train(data_dir: Path, scratch: Path, model: nn.Module, clock: Clock, *, recipe: str) -> None:
    train_only(model, recipe)
    dataset = _dataset(data_dir, scratch)
    Trainer(
        _Classifier(model),
        _arguments(scratch),
        train_dataset=dataset["Train"],
        eval_dataset=dataset["Val"],
        data_collator=_collate,
        compute_metrics=_accuracy,
        callbacks=[_Laps(clock)],
    ).train()


def _arguments(scratch: Path) -> TrainingArguments:
    """Their defaults but for the task itself, and nothing that would only cost time."""
    return TrainingArguments(
        output_dir=str(scratch / "output"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        dataloader_num_workers=NUM_WORKERS,
        dataloader_persistent_workers=True,
        remove_unused_columns=False,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )


def _dataset(data_dir: Path, scratch: Path) -> DatasetDict:
    dataset = load_dataset(
        "imagefolder",
        data_files={split: str(data_dir / split / "**") for split in TRANSFORMS},
        cache_dir=str(scratch / "cache"),
    )
    for split, transform in TRANSFORMS.items():
        dataset[split].set_transform(partial(_transformed, transform=transform))
    return dataset


def _transformed(rows: dict, *, transform: nn.Module) -> dict:
    images = [transform(image.convert("RGB")) for image in rows["image"]]
    return {"pixel_values": images, "label": rows["label"]}


def _collate(examples: list[dict]) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "labels": torch.tensor([example["label"] for example in examples]),
    }


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": (prediction.predictions.argmax(1) == prediction.label_ids).mean()}


RECIPES = {recipe: partial(_train, recipe=recipe) for recipe in TRAINED}
