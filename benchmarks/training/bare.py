"""train_model with nothing frozen, beside a bare loop on tensors in memory, in turns.

`python -m training.bare data_dir`; the last line printed is JSON: the seconds of each pass over the
training images, of the loops in turns. train_model gets its images from files, decoded once,
augmented by two workers.
"""

import json
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from resnet_ft import Callback, TrainingState, build_model, make_dataloaders, train_model
from training import ARCH, BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES, NUM_WORKERS

_PAIRS = 3
Batches = list[tuple[Tensor, Tensor]]


class _TrainingPhases(Callback):
    """The seconds of each pass over the training images, without the validation after it."""

    def __init__(self) -> None:
        self.seconds = []

    def on_phase_begin(self, state: TrainingState) -> None:
        self._started = time.perf_counter()

    def on_phase_end(self, state: TrainingState) -> None:
        if state.phase == "train":
            self.seconds.append(time.perf_counter() - self._started)


class _OneStep(Callback):
    """Ends a run after its first batch, for warming up."""

    def on_step_end(self, state: TrainingState) -> None:
        state.should_stop = True


class _BareLoop:
    """Forward, backward and step, in one memory format."""

    def __init__(self, model: nn.Module, loader: DataLoader, memory_format: torch.memory_format):
        self._model = deepcopy(model).to(memory_format=memory_format).train()
        self._optimizer = _optimizer(self._model)
        self._criterion = nn.CrossEntropyLoss()
        self._batches = [
            (images.clone(memory_format=memory_format), labels.clone()) for images, labels in loader
        ]
        self._run(self._batches[:1])
        self.seconds = []

    def run(self) -> None:
        started = time.perf_counter()
        self._run(self._batches)
        self.seconds.append(time.perf_counter() - started)

    def _run(self, batches: Batches) -> None:
        for images, labels in batches:
            self._optimizer.zero_grad()
            self._criterion(self._model(images), labels).backward()
            self._optimizer.step()


def measure(data_dir: Path) -> dict[str, object]:
    """Seconds of passes over the training images, of which each loop has seen a batch before."""
    model = build_model(ARCH, NUM_CLASSES, weights=None)
    with tempfile.TemporaryDirectory(prefix="kept-", dir=data_dir.parent) as scratch:
        loaders = _loaders(data_dir, Path(scratch))
        bare = _BareLoop(model, loaders["train"], torch.contiguous_format)
        channels_last = _BareLoop(model, loaders["train"], torch.channels_last)
        ours, optimizer = _TrainingPhases(), _optimizer(model)
        train_model(model, loaders, None, optimizer, num_epochs=1, callbacks=[_OneStep()])
        for _ in range(_PAIRS):
            train_model(model, loaders, None, optimizer, num_epochs=1, callbacks=[ours])
            bare.run()
            channels_last.run()
    return {
        "library": "resnet_ft",
        "recipe": "nothing frozen",
        "train_model": _rounded(ours.seconds),
        "bare": _rounded(bare.seconds),
        "bare_channels_last": _rounded(channels_last.seconds),
        "images": len(loaders["train"].dataset),
        "threads": torch.get_num_threads(),
    }


def _loaders(data_dir: Path, scratch: Path) -> dict[str, DataLoader]:
    return make_dataloaders(
        data_dir,
        image_size=IMAGE_SIZE,
        batch_size=BATCH_SIZE,
        num_workers=NUM_WORKERS,
        cache_dir=scratch,
    )


def _optimizer(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.001, momentum=0.9)


def _rounded(seconds: list[float]) -> list[float]:
    return [round(value, 3) for value in seconds]


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
