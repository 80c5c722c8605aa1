"""What an exported file answers in a process of its own: numpy and its runtime, nothing else.

python -m resnet_ft.inference.fresh FILE IMAGES.npy ANSWERS.npz THREADS
"""

import sys
from time import perf_counter

import numpy as np


def answer(file: str, images: str, answers: str, threads: str) -> None:
    """Write the probabilities (N, C) of images (N, 3, H, W), uint8, and the seconds for each."""
    if file.endswith(".onnx"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(threads)
        session = onnxruntime.InferenceSession(file, options)

        def run(image: np.ndarray) -> np.ndarray:
            return session.run(["probabilities"], {"images": image})[0]
    else:
        import torch

        from resnet_ft.inference.export import FromBytes
        from resnet_ft.inference.predictor import Predictor

        torch.set_num_threads(int(threads))
        net = FromBytes(Predictor.load(file)).eval()

        def run(image: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return net(torch.from_numpy(image))[0].numpy()

    found, times = [], [perf_counter()]
    for image in np.load(images):
        found.append(run(image[None]))
        times.append(perf_counter())
    np.savez(answers, probabilities=np.concatenate(found), seconds=np.diff(times))


if __name__ == "__main__":
    answer(*sys.argv[1:])
