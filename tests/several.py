"""Training for tests with several processes: `several.py name options-as-JSON`, under torchrun."""

import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from resnet_ft import (
    Callback,
    build_model,
    distributed,
    eval_transform,
    evaluate,
    fine_tune,
    freeze,
    make_dataloaders,
    precompute,
    train_model,
)


class StopAt(Callback):
    """Somebody stops the run in a step of an epoch's validation."""

    def __init__(self, epoch, step):
        self.at = (epoch, step)

    def on_step_begin(self, state):
        if state.phase == "val" and (state.epoch, state.step) == self.at:
            raise KeyboardInterrupt


class DieAt(Callback):
    """The last process is gone in the middle of a run, without a word."""

    def __init__(self, epoch, step):
        self.at = (epoch, step)

    def on_step_begin(self, state):
        if (state.epoch, state.step) == self.at and distributed.rank() == distributed.count() - 1:
            os._exit(9)


def loaders(photos, cache, batch_size=4):
    options = {"image_size": 32, "batch_size": batch_size, "num_workers": 0}
    return make_dataloaders(photos, **options, cache_dir=Path(cache) / "images")


def seed():
    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(0)


def focal(logits, labels):
    """A criterion of one's own: a mean over samples."""
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def highest(logits, labels):
    """No mean over samples: what it is of a batch cannot be told from its parts."""
    return nn.functional.cross_entropy(logits, labels, reduction="none").max()


CRITERIA = {
    "plain": nn.CrossEntropyLoss(),
    "weighted": nn.CrossEntropyLoss(torch.tensor([9.0, 0.5]), label_smoothing=0.1),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "focal": focal,
    "highest": highest,
}


def loop(photos, run_dir, cache, batch_size=4, die_at=None, stop_at=None, criterion="plain"):
    """A network without batch normalisation and dropout: the same numbers in any number of them."""
    seed()
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(128, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    data = loaders(photos, cache, batch_size)
    callbacks = [one(*at) for one, at in ((DieAt, die_at), (StopAt, stop_at)) if at]
    options = {"optimizer": optimizer, "num_epochs": 3, "callbacks": callbacks}
    model, _ = train_model(model, data, CRITERIA[criterion], run_dir=run_dir, **options)
    write(evaluate(model, data["val"]), run_dir)


def recipe(photos, run_dir, cache, minutes=None):
    """The head on features that are computed in shares, then the network, averaged as well."""
    seed()
    data = loaders(photos, cache)
    model = build_model("resnet18", 2, weights=None)
    model.pretrained = True
    length = {"minutes": minutes} if minutes else {"epochs": 2}
    folder = Path(cache) / "features"
    model, _ = fine_tune(model, data, **length, run_dir=run_dir, cache_dir=folder)
    write(evaluate(model, data["val"]), run_dir)


def shares(photos, run_dir, cache):
    """How many images each process prepares for the frozen layers."""
    seed()
    count, plain = [], eval_transform(32)

    def counting(image):
        count.append(image)
        return plain(image)

    data = make_dataloaders(photos, image_size=32, batch_size=4, val=counting, num_workers=0)
    model = build_model("resnet18", 2, weights=None)
    freeze(model, until="fc")
    _, features = precompute(model, data, cache_dir=Path(cache))
    rows, _ = features["train"].dataset.first_view()
    Path(run_dir, f"rank{distributed.rank()}.json").write_text(
        json.dumps({"prepared": len(count), "sums": rows.sum(dim=1).tolist()})
    )


def write(predictions, run_dir):
    """What each process was told; the paths and numbers of all have to be the same."""
    predictions.save(Path(run_dir) / f"rank{distributed.rank()}.csv")


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    distributed.end()
