"""What a model's file answers, also in a fresh process, which `compare_exports` starts."""

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

Answer = Callable[[np.ndarray], np.ndarray]


def timed(answer: Answer, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, C) for bytes (N, 3, H, W), one by one, and the seconds of each."""
    found, times = [], [perf_counter()]
    for image in images:
        found.append(answer(image[None]))
        times.append(perf_counter())
    return np.concatenate(found), np.diff(times)


def of_predictor(predictor: Any) -> Answer:
    """On the processor, in full precision."""
    import torch

    model, (*_, to_floats, normalise) = predictor.model.cpu(), predictor.transform.transforms

    @torch.inference_mode()
    def answer(images: np.ndarray) -> Any:
        logits = model(normalise(to_floats(torch.from_numpy(images))))
        return (logits / predictor.calibration.temperature).softmax(dim=1).numpy()

    return answer


def of_onnx(file: str, threads: int) -> Answer:
    """By onnxruntime, on so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options)
    return lambda images: session.run(["probabilities"], {"images": images})[0]


if __name__ == "__main__":
    file, images, answers, threads = sys.argv[1:]
    if file.endswith(".safetensors"):
        from resnet_ft.inference.predictor import Predictor

        loaded = of_predictor(Predictor.load(file))
    else:
        loaded = of_onnx(file, int(threads))
    np.savez(answers, *timed(loaded, np.load(images)))
