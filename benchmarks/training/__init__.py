"""How fast each library fine-tunes parts of a network: a module a library.

`RECIPES` of a module names what is trained: "frozen" is the head alone, "layer4" the last stage and
the head. Each is a function (data_dir, scratch, model, clock) that makes loaders of the folder's
images with two workers and trains `model` on them, in float32 on the CPU, with a validation after
every epoch. It calls `clock.lap()` when its first epoch begins and whenever one has ended. The
empty folder `scratch` is for what the library wants to keep.
"""

ARCH = "resnet101"
NUM_CLASSES = 2
IMAGE_SIZE = 224
BATCH_SIZE = 16
NUM_WORKERS = 2
EPOCHS = 2  # of the others, which keep nothing: a later epoch of theirs is like the second
