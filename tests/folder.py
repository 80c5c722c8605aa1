"""Predicts a folder for tests that kill it: `folder.py folder csv [seconds for each file]`.

It opens files with a function of its own, and prints how many it has opened.
"""

import os
import sys
import time

import torch
from PIL import Image
from torch import nn

from resnet_ft import Predictor, distributed, eval_transform

BATCH_SIZE = 25
OPENED = []
SECONDS = 0.0  # that a file takes


class Colour(nn.Module):
    """As many classes as there are colours."""

    def forward(self, images):
        return 5 * images.mean(dim=(2, 3))


def counted(path):
    """Opens a file; the last process dies at one with this name, without a word."""
    OPENED.append(path)
    time.sleep(SECONDS)
    if "die" in os.path.basename(path) and distributed.rank() == 1 and os.environ.get("DIE"):
        os._exit(9)
    return Image.open(path)


def predictor():
    return Predictor(Colour(), ["red", "green", "blue"], eval_transform(8), open_image=counted)


def main(folder, csv, seconds="0"):
    global SECONDS  # noqa: PLW0603
    SECONDS = float(seconds)
    torch.set_num_threads(1)
    options = {"batch_size": BATCH_SIZE, "num_workers": 0}
    predictor().predict_folder(folder, csv, top_k=2, **options)
    print(len(OPENED))


if __name__ == "__main__":
    main(*sys.argv[1:])
