"""One row: every way to predict a folder, by turns, each in a process of its own.

`python -m predicting.measure data_dir arch`; the last line printed is JSON. With a library and a
configuration as well, it is the process of that one.
"""

import importlib
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import torch

from predicting import BATCH_SIZE, COLUMNS, make_weights

_LIBRARIES = {
    "resnet_ft": ["predict_folder"],
    "torchvision": ["transforms", "transforms.v2"],
    "timm": ["inference.py", "inference.py --channels-last"],
    "fastai": ["get_preds"],
    "huggingface": ["pipeline"],
}
_NUMBER = {("500x375", "resnet18"): 256}  # of files; of others:
_FEWER = 64
_PASSES = 3


def measure(data_dir: Path, arch: str) -> dict[str, object]:
    """Images per second of each pass, from the list of files to the CSV.

    A first batch comes before; imports and loading the weights are not timed. A process that waits
    for its turn takes no time.
    """
    make_weights(arch, data_dir.parent)
    speeds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        processes = {
            f"{library} / {configuration}": stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "predicting.measure"]
                    + [str(data_dir), arch, library, configuration],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for library, configurations in _LIBRARIES.items()
            for configuration in configurations
        }
        for process in processes.values():
            _answer(process)  # it is ready
        for _ in range(_PASSES):
            for name, process in processes.items():
                process.stdin.write("again\n")
                process.stdin.flush()
                speeds.setdefault(name, []).append(_answer(process))
    return {
        "data_set": data_dir.name,
        "arch": arch,
        "images": len(_files(data_dir, arch)),
        "threads": torch.get_num_threads(),
        "images_per_s": speeds,
    }


def _answer(process: subprocess.Popen) -> float:
    """The next number that the process prints after "speed"."""
    for line in process.stdout:
        if line.startswith("speed "):
            return float(line.split()[1])
    raise SystemExit(f"{process.args} has ended: {process.wait()}")


def _files(data_dir: Path, arch: str) -> list[Path]:
    number = _NUMBER.get((data_dir.name, arch), _FEWER)
    return sorted((data_dir / "Train").rglob("*.jpg"))[:number]


def predict_when_asked(data_dir: Path, arch: str, library: str, configuration: str) -> None:
    """Predict the files once for each line of the input, and print the images per second."""
    build = importlib.import_module(f"predicting.{library}").CONFIGURATIONS[configuration]
    files = _files(data_dir, arch)
    assert all(len(path.read_bytes()) for path in files)  # in the page cache
    predict = build(make_weights(arch, data_dir.parent))
    with tempfile.TemporaryDirectory(prefix="kept-", dir=data_dir.parent) as scratch:
        predict(files[:BATCH_SIZE], Path(scratch, "first.csv"))
        print("speed 0", flush=True)
        for number, _ in enumerate(sys.stdin):
            csv = Path(scratch, f"{number}.csv")
            started = time.perf_counter()
            predict(files, csv)
            speed = len(files) / (time.perf_counter() - started)
            _check(csv, files)
            print(f"speed {speed:.2f}", flush=True)


def _check(csv: Path, files: list[Path]) -> None:
    """Equal work: a row per file, in order."""
    table = pd.read_csv(csv)
    assert set(COLUMNS) <= set(table), list(table)
    assert table["path"].tolist() == list(map(str, files))
    assert table["confidence"].between(0, 1).all() and table["predicted"].notna().all()


if __name__ == "__main__":
    data_dir, *names = sys.argv[1:]
    if len(names) > 1:
        predict_when_asked(Path(data_dir), *names)
    else:
        print(json.dumps(measure(Path(data_dir), *names)))
