"""The solver of heads: all of it for 100,000 images, or a single pass over a million.

Features are random and lie in a file of half precision, which is mapped as those of `precompute`
are. Run it with `python benchmarks/solver.py solve 100000 100` or `pass 1000000 1000`, on Linux;
the last line is JSON: seconds, megabytes, and how many rows went through the objective.
"""

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from scale import memory

from resnet_ft.features import solver as head

_FEATURES, _ROWS = 2048, 10_000
_PENALTY, _FEW = 1e-4, 2000


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
    """Counts how often the objective is evaluated, by the number of its rows."""

    passes: ClassVar[Counter[int]] = Counter()

    def objective(self, layer, rows, penalty):
        pass_over = super().objective(layer, rows, penalty)

        def counted() -> float:
            self.passes[len(rows)] += 1
            return pass_over()

        return counted


def measure_all(folder: Path, count: int, classes: int) -> dict[str, float]:
    """The whole of `solve_head`: the choice of the penalty, five folds, and all images."""
    features, labels = write_features(folder / "features", count, classes)
    head.Solver = Counting
    with peak_memory() as peak:
        start, used = time.perf_counter(), time.process_time()
        solved = head.solve_head(features, labels, classes)
        seconds, used = time.perf_counter() - start, time.process_time() - used
    right = solved.probabilities.argmax(dim=1) == labels
    print(dict(Counting.passes), f"penalty {solved.penalty:.1e}")
    few = {rows: passes for rows, passes in Counting.passes.items() if rows <= head._ENOUGH}
    of_all = Counting.passes[count]
    of_folds = Counting.passes.total() - sum(few.values()) - of_all
    return {
        "seconds": seconds,
        "processor_s": used,
        "peak_mb": peak[0],
        "accuracy": right.float().mean().item(),
        "rows_for_penalty": sum(rows * passes for rows, passes in few.items()),
        "passes_of_a_fold": of_folds / 5,
        "passes_of_all": of_all,
    }


def measure_pass(folder: Path, count: int, classes: int) -> dict[str, float]:
    """One evaluation of the objective with its gradients, once the features are standardised.

    The memory is that of all of `solve_head`: L-BFGS remembers its steps, tried on a few rows, and
    all images are predicted.
    """
    features, labels = write_features(folder / "features", count, classes)
    with peak_memory() as peak:
        start = time.perf_counter()
        solver = head.Solver(features, labels, classes, None)
        prepared, used = time.perf_counter(), time.process_time()
        pass_over = solver.objective(solver.start(), torch.arange(count), _PENALTY)
        pass_over()
        done, used = time.perf_counter(), time.process_time() - used
        found = head.empty_predictions(count, classes)
        solver.predict(solver.start(), torch.arange(count), *found)
        solver.fit(torch.arange(_FEW), _PENALTY)
    return {
        "preparation_s": prepared - start,
        "seconds": done - prepared,
        "processor_s": used,
        "peak_mb": peak[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["solve", "pass"])
    parser.add_argument("images", type=int)
    parser.add_argument("classes", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure = measure_all if options.what == "solve" else measure_pass
    described = {"images": options.images, "features": _FEATURES, "classes": options.classes}
    with tempfile.TemporaryDirectory() as temporary:
        measured = measure(Path(temporary), options.images, options.classes)
    rounded = {name: round(value, 3) for name, value in measured.items()}
    print(json.dumps(described | rounded | {"threads": options.threads}))


if __name__ == "__main__":
    main()
