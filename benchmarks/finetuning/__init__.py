"""How each library makes a classifier of a pretrained network: a module a library.

`RECIPES` of a module names its ways to do so. Each is a function (data_dir, weights, seed) -> a
dict with `accuracy`, that of the model it ends with on all validation images, and what else is
worth keeping. `weights` is the file that `network.py` writes. Every recipe reads files with two
workers, and all but what a recipe needs to be itself is the library's default.
"""

ARCH = "tf_efficientnet_lite0"  # timm's name
IMAGE_SIZE = 128
MEAN = STD = (0.5, 0.5, 0.5)  # those that its weights were trained with
NUM_WORKERS = 2
EPOCHS = 5
