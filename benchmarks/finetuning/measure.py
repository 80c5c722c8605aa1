"""One row: a recipe on a data set, from the folder to the trained model, in its own process.

`python -m finetuning.measure data_dir library recipe seed`; the last line printed is JSON.
"""

import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from finetuning.network import save_weights


def measure(data_dir: Path, library: str, recipe: str, seed: int) -> dict[str, object]:
    """Validation accuracy and seconds; imports and the writing of the weights are not timed."""
    run = importlib.import_module(f"finetuning.{library}").RECIPES[recipe]
    assert all(len(path.read_bytes()) for path in data_dir.rglob("*.*"))  # into the page cache
    with tempfile.TemporaryDirectory() as scratch:
        weights = save_weights(Path(scratch) / "weights.pt")
        started = time.perf_counter()
        measured = run(data_dir, weights, seed)
        seconds = time.perf_counter() - started
    return {
        "data_set": data_dir.name,
        "library": library,
        "recipe": recipe,
        "seed": seed,
        "seconds": round(seconds, 1),
        **{name: round(value, 4) for name, value in measured.items()},
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    data_dir, library, recipe, seed = sys.argv[1:]
    print(json.dumps(measure(Path(data_dir), library, recipe, int(seed))))
