"""How busy a GPU is kept: training and prediction beside what binds them, images per second.

`make bench-gpu` runs this where there is a GPU: only rows that benchmarks/results/gpu.json lacks,
or all of them with --fresh. `--quick` takes two networks and one batch size, in four minutes.
"""

import argparse
import os
import sys
from itertools import product
from pathlib import Path

import torch
from report import GPU, write_report
from runner import BENCHMARKS, Row, forget, run_missing

_DATA = BENCHMARKS.parents[1] / "shared" / "data" / "flowers12"
_NETWORKS, _BATCH_SIZES = ("resnet18", "resnet50", "resnet101"), (32, 128)
_QUICK = ("resnet18", "resnet101"), (32,)
_COLAB = 2  # cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="measure every row anew")
    parser.add_argument("--quick", action="store_true", help="fewer networks and batch sizes")
    parser.add_argument("--data", type=Path, default=_DATA, help="the folder of a data set")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("There is no GPU here, so nothing is measured.")
    networks, batch_sizes = _QUICK if arguments.quick else (_NETWORKS, _BATCH_SIZES)
    name = torch.cuda.get_device_name()
    rows = [
        Row(
            f"{name} / {arch} / batch {batch_size} / {cores} cores",
            ("-m", "on_gpu.measure", str(arguments.data), arch, str(batch_size), str(cores)),
            ("torch", "torchvision", "resnet_ft"),
        )
        for arch, batch_size, cores in product(networks, batch_sizes, _cores())
    ]
    if arguments.fresh:
        forget(rows, GPU)
    failed = run_missing(rows, GPU, on_gpu=True)
    write_report()
    if failed:
        sys.exit(f"Not measured: {', '.join(failed)}. Running again measures only these.")


def _cores() -> list[int]:
    """Those of Colab, and all that there are."""
    return sorted({_COLAB, len(os.sched_getaffinity(0))})


if __name__ == "__main__":
    main()
