"""Work on a GPU for tests: `gpu.py name options-as-JSON`, one process each, as precision asks."""

import json
import sys

import torch
from conftest import network, tensors
from torch.utils.data import DataLoader

from resnet_ft import (
    Autosave,
    Callback,
    MixedLoader,
    WeightAverage,
    build_model,
    fine_tune,
    make_dataloaders,
    make_optimizer,
    make_scheduler,
    parameter_groups,
    train_model,
)


class StopAt(Callback):
    """Somebody stops the run after a step."""

    def __init__(self, epoch, step):
        self.at = epoch, step

    def on_step_begin(self, state):
        if (state.epoch, state.step) == self.at:
            raise KeyboardInterrupt


def loop(run_dir, stop_at=None, num_epochs=3):
    """BatchNorm, dropout, MixUp, a schedule per step and an average of the weights."""
    torch.manual_seed(0)
    model = network()
    optimizer = make_optimizer("adamw", parameter_groups(model, 0.01))
    train = DataLoader(tensors(36, 0), batch_size=4, shuffle=True)
    loaders = {"train": MixedLoader(train, 2), "val": DataLoader(tensors(9, 1), batch_size=4)}
    callbacks = [WeightAverage(), Autosave(minutes=1e-9)]
    callbacks = [StopAt(*stop_at), *callbacks] if stop_at else callbacks
    schedule = make_scheduler(optimizer, "cosine", 27)
    arguments = (model, loaders, None, optimizer, schedule, num_epochs)
    try:
        train_model(*arguments, run_dir=run_dir, callbacks=callbacks)
    except KeyboardInterrupt:
        print("interrupted")


def recipe(run_dir, photos, cache):
    """The head, then all layers."""
    torch.manual_seed(0)
    loaders = make_dataloaders(
        photos, image_size=32, batch_size=4, num_workers=1, cache_dir=f"{cache}/images"
    )
    model = build_model("resnet18", 2, weights=None)
    model.pretrained = True  # it begins with the head
    _, history = fine_tune(
        model, loaders, epochs=2, mix="both", run_dir=run_dir, cache_dir=f"{cache}/features"
    )
    print(history.to_json())


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    globals()[sys.argv[1]](**json.loads(sys.argv[2]))
