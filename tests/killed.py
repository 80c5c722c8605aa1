"""A training run for tests that kill it: `python killed.py name run_dir [options as JSON]`.

It prints a line for each step that is complete, and waits a little so that there is time to kill.
"""

import json
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, StepLR
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent))

from conftest import network, tensors

from resnet_ft import (
    Autosave,
    Callback,
    EarlyStop,
    MixedLoader,
    PerStep,
    WeightAverage,
    build_model,
    fine_tune,
    make_dataloaders,
    train_model,
    warmup_cosine,
)


class Announce(Callback):
    """Says that a step is complete, makes it a slow one, and presses Ctrl-C at one of them."""

    def __init__(self, seconds, interrupt_at=None):
        self.seconds, self.interrupt_at = seconds, interrupt_at

    def on_step_end(self, state):
        print(state.epoch, state.phase, state.step, flush=True)
        time.sleep(self.seconds)
        if self.interrupt_at == (state.epoch, state.phase, state.step):
            signal.raise_signal(signal.SIGINT)


def seed():
    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(0)


def loop(run_dir, *, seconds=0.0, num_epochs=4, interrupt_at=None):
    """train_model on a loader that shuffles by the default generator, with all that has a state."""
    seed()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    by_step = LambdaLR(optimizer, lambda step: warmup_cosine(step / 40))
    scheduler = PerStep(ChainedScheduler([by_step, StepLR(optimizer, 18)]))
    train = DataLoader(tensors(36, 0), batch_size=4, shuffle=True)
    loaders = {"train": MixedLoader(train, 2), "val": DataLoader(tensors(9, 1), batch_size=4)}
    return train_model(
        model,
        loaders,
        optimizer=optimizer,
        scheduler=scheduler,
        num_epochs=num_epochs,
        run_dir=run_dir,
        callbacks=[
            *(WeightAverage(), EarlyStop(9)),
            *(Announce(seconds, interrupt_at), Autosave(minutes=1e-4)),
        ],
    )


def recipe(run_dir, *, photos, seconds=0.0):
    """fine_tune on photographs that workers read, with MixUp."""
    loaders = make_dataloaders(photos, image_size=32, batch_size=4, num_workers=1)
    seed()
    model = build_model("resnet18", 2, weights=None)
    model.pretrained = True  # it begins with the head
    callbacks = [Announce(seconds), Autosave(minutes=1e-4)]
    options = {"epochs": 2, "mix": "both", "patience": 9}
    return fine_tune(model, loaders, **options, run_dir=run_dir, callbacks=callbacks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](sys.argv[2], **json.loads(sys.argv[3]))
