"""How a model's file answers in a process of its own, which `compare_exports` starts."""

import sys
from time import perf_counter
from typing import Any

import numpy as np


def answer(file: str, images: str, answers: str, threads: str) -> None:
    """Write the probabilities (N, C) of bytes (N, 3, H, W), one by one, and the seconds of each."""
    if file.endswith(".onnx"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(threads)
        session = onnxruntime.InferenceSession(file, options)

        def run(image: np.ndarray) -> Any:
            return session.run(["probabilities"], {"images": image})[0]
    else:
        import torch

        from resnet_ft.inference.predictor import Predictor

        torch.set_num_threads(int(threads))
        predictor: Any = Predictor.load(file)
        model, (*_, to_floats, normalise) = predictor.model.cpu(), predictor.transform.transforms

        @torch.inference_mode()
        def run(image: np.ndarray) -> Any:
            logits = model(normalise(to_floats(torch.from_numpy(image))))
            return (logits / predictor.calibration.temperature).softmax(dim=1).numpy()

    found, times = [], [perf_counter()]
    for image in np.load(images):
        found.append(run(image[None]))
        times.append(perf_counter())
    np.savez(answers, probabilities=np.concatenate(found), seconds=np.diff(times))


if __name__ == "__main__":
    answer(*sys.argv[1:])
