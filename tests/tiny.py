"""A run of a few hundred weights on noise, for tests of what can happen to a run."""

import torch
from conftest import network, tensors
from torch.utils.data import DataLoader

from resnet_ft import Callback, Run, train_model


def noise_loaders():
    return {
        "train": DataLoader(tensors(12, 0), batch_size=4, shuffle=True),
        "val": DataLoader(tensors(6, 1), batch_size=4),
    }


def train(loaders, run_dir, *, num_epochs=3, lr=0.01, **options):
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return train_model(
        model, loaders, optimizer=optimizer, num_epochs=num_epochs, run_dir=run_dir, **options
    )


def saved(folder):
    return Run(folder).resume_state()[1]


class FailAt(Callback):
    def __init__(self, epoch, step, error):
        self.at, self.error = (epoch, step), error

    def on_step_end(self, state):
        if (state.epoch, state.step) == self.at:
            raise self.error
