"""How each library turns a folder of photographs into training batches: a module a library.

`CONFIGURATIONS` of a module names the ways to use the library that promise to be its fastest. Each
is a function (data_dir, scratch) -> an iterable of batches (images, labels), where an epoch's
images are float32, normalised, of shape (32, 3, 224, 224), randomly cropped and flipped on two
workers. An empty folder `scratch` is for what the library wants to keep between epochs.
"""

IMAGE_SIZE = 224
BATCH_SIZE = 32
NUM_WORKERS = 2
