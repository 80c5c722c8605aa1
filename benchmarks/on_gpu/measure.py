"""One row: training and prediction of a network at a batch size, on so many processor cores.

`python -m on_gpu.measure data_dir arch batch_size cores`; the last line printed is JSON. Each
speed, in images per second, is that of a few seconds after a start that is not timed.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from resnet_ft import (
    Callback,
    Predictor,
    TrainingState,
    build_model,
    engine,
    freeze,
    make_dataloaders,
    make_optimizer,
    parameter_groups,
    train_model,
)
from resnet_ft.data.batches import device_batches
from resnet_ft.models.freezing import train_mode

_TRAINS = {"everything": None, "layer4 and head": "layer4", "head": "fc"}
_FIRST_STEPS = 5
_SECONDS = 2.0


def measure(
    data_dir: Path, arch: str, batch_size: int, workers: int, *, image_size: int = 224
) -> dict[str, object]:
    """Images per second of every loop, and where the milliseconds of a step of training go."""
    with tempfile.TemporaryDirectory(prefix="kept-") as scratch:
        loaders = make_dataloaders(
            data_dir,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=workers,
            cache_dir=scratch,
        )
        alone = _speed(_endless(loaders["train"]))
        rows = {}
        for what, until in _TRAINS.items():
            model = build_model(arch, len(loaders["train"].dataset.classes), weights=None)
            if until:
                freeze(model, until=until)
            ours = _Steps()
            optimizer = make_optimizer("adamw", parameter_groups(model, 1e-4))
            train_model(model, loaders, None, optimizer, num_epochs=1000, callbacks=[ours])
            rows[what] = {"resnet_ft": ours.speed, "bare": _bare(model, batch_size, image_size)}
            rows[what] |= ours.milliseconds
        rows["prediction"] = _prediction(model, loaders["val"], data_dir, Path(scratch))
    return {
        "arch": arch,
        "batch_size": batch_size,
        "cores": workers,
        "gpu": engine.describe_device(),
        "loader": round(alone, 1),
        "rows": {
            what: {name: round(one, 2) for name, one in row.items()} for what, row in rows.items()
        },
    }


class _Steps(Callback):
    """Times the steps within epochs, not the first ones of each, until there is enough.

    A step is at most one ahead of the GPU, since it looks at the loss of the one before.
    """

    def on_fit_begin(self, state: TrainingState) -> None:
        self.images = self.steps = 0
        self.seconds = self.waited = 0.0

    def on_step_begin(self, state: TrainingState) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, state: TrainingState) -> None:
        now = time.perf_counter()
        if state.phase == "train" and state.step > _FIRST_STEPS:
            self.steps += 1
            self.images += len(state.output.labels)
            self.seconds += now - self._ended
            self.waited += self._began - self._ended
            state.should_stop = self.seconds > _SECONDS
        self._ended = now

    @property
    def speed(self) -> float:
        return self.images / self.seconds

    @property
    def milliseconds(self) -> dict[str, float]:
        """Of a step: all of it, and that of waiting for its batch."""
        whole, waited = (1000 * one / self.steps for one in (self.seconds, self.waited))
        return {"step_ms": whole, "waiting_ms": waited}


def _bare(model: nn.Module, batch_size: int, image_size: int) -> float:
    """Forward, backward and step over one batch that is on the device, as fast as torch has it."""
    images, labels = _batch(batch_size, image_size)
    optimizer = make_optimizer("adamw", parameter_groups(model, 1e-4))
    criterion = nn.CrossEntropyLoss()
    with engine.prepared(model, optimizer) as (net, stepper):
        train_mode(net)

        def step() -> int:
            stepper.zero_grad()
            engine.backward(criterion(net(images), labels))
            stepper.step()
            return batch_size

        return _speed(repeat(step))


def _prediction(
    model: nn.Module, loader: DataLoader, data_dir: Path, scratch: Path
) -> dict[str, float]:
    """A folder to its table, from its files and from a cache, beside forward passes alone."""
    images, _ = _batch(loader.batch_sampler.batch_size, loader.dataset.preprocessing["image_size"])
    model = model.eval().to(memory_format=torch.channels_last)
    predictor = Predictor(model, loader.dataset.classes, loader.dataset.transform)

    @torch.inference_mode()
    def forward() -> int:
        with engine.accelerator().autocast():
            model(images)
        return len(images)

    def folder(**options: object) -> float:
        started = time.perf_counter()
        table = predictor.predict_folder(
            data_dir / "Train", batch_size=len(images), num_workers=loader.num_workers, **options
        )
        return len(table) / (time.perf_counter() - started)

    folder()  # which starts all that is started once
    kept = {"cache_dir": scratch / "predicted"}
    folder(**kept)
    return {
        "resnet_ft": folder(**kept),
        "from files": folder(),
        "bare": _speed(repeat(forward)),
    }


def _batch(batch_size: int, image_size: int) -> tuple[Tensor, Tensor]:
    images = torch.randn(batch_size, 3, image_size, image_size, device=engine.device())
    images = images.to(engine.compute_dtype(), memory_format=torch.channels_last)
    return images, torch.zeros(batch_size, dtype=torch.long, device=engine.device())


def _endless(loader: DataLoader) -> Iterator[Callable[[], int]]:
    """What gets the next batch on the device, epoch after epoch; its result are so many images."""
    while True:
        for images, _ in device_batches(loader):
            yield partial(len, images)


def _speed(works: Iterable[Callable[[], int]]) -> float:
    """Images per second of pieces of work, each of which says how many images it was."""
    images, started = 0, 0.0
    for number, work in enumerate(works):
        if number == _FIRST_STEPS:
            _catch_up()
            images, started = 0, time.perf_counter()
        images += work()
        if number > _FIRST_STEPS and time.perf_counter() - started > _SECONDS:
            break
    _catch_up()
    return images / (time.perf_counter() - started)


def _catch_up() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    folder, arch, batch_size, cores = sys.argv[1:]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    print(json.dumps(measure(Path(folder), arch, int(batch_size), int(cores))))
