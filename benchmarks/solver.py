"""The solver of heads: seconds and memory for 100,000 images, and a pass over a million.

Features are random and lie in a file of half precision, which is mapped as those of `precompute`
are. The last line is JSON: seconds, megabytes, and how many passes over the images were taken.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from scale import memory

from resnet_ft.training import head

_FEATURES, _ROWS = 2048, 10_000
_PENALTY = 1e-4


def write_features(path: Path, count: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D) around a centre for each class, not negative, and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, _FEATURES, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    with path.open("wb") as file:
        for some in labels.split(_ROWS):
            noise = torch.randn(len(some), _FEATURES, generator=generator)
            file.write((0.06 * centres[some] + noise).relu_().half().numpy().tobytes())
    mapped = np.memmap(path, np.float16, mode="c", shape=(count, _FEATURES))
    return torch.from_numpy(mapped), labels


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The most megabytes that are no file's, above those at the start, every 20 milliseconds."""
    before, most, over = memory("RssAnon"), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            most[0] = max(most[0], memory("RssAnon") - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield most
    finally:
        over.set()
        watching.join()


class Counting(head.Solver):
    """Counts the passes over the training images of a fold, or of all."""

    passes: ClassVar[dict[int, int]] = {}

    def objective(self, layer, rows, penalty):
        pass_over = super().objective(layer, rows, penalty)

        def counted() -> float:
            self.passes[len(rows)] = self.passes.get(len(rows), 0) + 1
            return pass_over()

        return counted


def measure_all(folder: Path, count: int, classes: int) -> dict[str, float]:
    """The whole of `solve_head`."""
    features, labels = write_features(folder / "features", count, classes)
    head.Solver, Counting.passes = Counting, {}
    with peak_memory() as peak:
        start = time.perf_counter()
        solved = head.solve_head(features, labels, classes)
        seconds = time.perf_counter() - start
    right = solved.probabilities.argmax(dim=1) == labels
    print({**Counting.passes, "penalty": solved.penalty, "accuracy": right.float().mean().item()})
    over = sum(n * passes for n, passes in Counting.passes.items() if n > head._ENOUGH)
    return {
        "solver_images": count,
        "solver_classes": classes,
        "solver_s": seconds,
        "solver_peak_mb": peak[0],
        "solver_passes": over / count,
    }


def measure_pass(folder: Path, count: int, classes: int) -> dict[str, float]:
    """One pass for loss and gradients, after that which standardises the features."""
    features, labels = write_features(folder / "features", count, classes)
    with peak_memory() as peak:
        start = time.perf_counter()
        solver = head.Solver(features, labels, classes, None)
        prepared = time.perf_counter()
        pass_over = solver.objective(solver.start(), torch.arange(count), _PENALTY)
        pass_over()
        done = time.perf_counter()
    return {
        "pass_images": count,
        "pass_classes": classes,
        "pass_preparation_s": prepared - start,
        "pass_s": done - prepared,
        "pass_peak_mb": peak[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--pass-images", type=int, default=1_000_000)
    parser.add_argument("--pass-classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured: dict[str, float] = {"threads": options.threads}
    with tempfile.TemporaryDirectory() as temporary:
        if options.images:
            measured |= measure_all(Path(temporary), options.images, options.classes)
        if options.pass_images:
            measured |= measure_pass(Path(temporary), options.pass_images, options.pass_classes)
    print(json.dumps({name: round(value, 2) for name, value in measured.items()}))


if __name__ == "__main__":
    main()
