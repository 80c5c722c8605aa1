"""What helps `fine_tune` where nothing was chosen: variants of its recipe, in the same cells.

`python benchmarks/recipe.py` measures the rows that benchmarks/results/recipe.json lacks, many in
one process, in an order that gives every variant the same cells early. It may be stopped at any
time. Several processes share the work: `--part 0/2` and `--part 1/2`. `make bench-recipe`.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import date
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from finetuning.network import save_weights
from recipe_table import MACHINE, RECIPE
from recipes import ALL, DATA_SETS
from recipes.draws import draw_folder
from recipes.measure import measure
from recipes.variants import VARIANTS
from report import write_report
from runner import BENCHMARKS, describe_machine, read_results

_DATA = BENCHMARKS.parents[1] / "shared" / "data"
_SCRATCH = BENCHMARKS.parent / ".bench-data" / "recipe"
_PACKAGES = ("torch", "torchvision", "timm")

# Images per class and epochs, in the order in which they are measured.
_SMALL = ((10, 5), (20, 5), (5, 5), (10, 1), (10, 10), (5, 2), (20, 2), (20, 1), (5, 10))
_PLANS = {
    "smoke": ((5, 1),),
    "small": _SMALL,
    "all": ((ALL, 5), (ALL, 1)),
    "scratch": ((20, 10), (ALL, 5)),
}


class Cell(NamedTuple):
    """A run: the last field is what differs within a pair."""

    data_set: str
    images: int
    draw: int
    epochs: int
    arch: str
    variant: str

    @property
    def name(self) -> str:
        images = self.images or "all"
        start = [] if self.arch == "efficientnet" else [self.arch]
        cell = [self.data_set, f"{images} images", f"draw {self.draw}", f"{self.epochs} epochs"]
        return " / ".join([*start, *cell, self.variant])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", choices=_PLANS, default="small")
    parser.add_argument(
        "--cells", nargs="+", help="in place of a plan: 10x5 is 10 images, 5 epochs"
    )
    parser.add_argument("--sets", nargs="+", default=list(DATA_SETS))
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--part", default="0/1", help="which part of how many: 0/2")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no row later")
    parser.add_argument("--results", type=Path, default=RECIPE)
    parser.add_argument("--data", type=Path, default=_DATA, help="the folder of the data sets")
    parser.add_argument("--scratch", type=Path, default=_SCRATCH, help="for caches and draws")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * chosen.minutes
    part, parts = map(int, chosen.part.split("/"))
    chosen.scratch.mkdir(parents=True, exist_ok=True)
    if not (weights := chosen.scratch / "weights.pt").exists():
        save_weights(weights)
    groups = groupby(_cells(chosen), key=lambda cell: cell[:4])
    for number, (_, group) in enumerate(groups):
        if number % parts != part:
            continue
        known: dict = {}
        for cell in group:
            if cell.name in read_results(chosen.results):
                continue
            if time.monotonic() > end:
                return
            _measure(cell, chosen, weights, known)
    if chosen.results == RECIPE:
        write_report()


def _cells(chosen: argparse.Namespace) -> Iterator[Cell]:
    arch = "resnet18" if chosen.plan == "scratch" else "efficientnet"
    cells = _PLANS[chosen.plan]
    if chosen.cells:
        numbers = (text.replace("all", str(ALL)).split("x") for text in chosen.cells)
        cells = tuple((int(images), int(epochs)) for images, epochs in numbers)
    for draw in chosen.draws:
        for images, epochs in cells:
            for data_set in chosen.sets:
                for variant in chosen.variants:
                    yield Cell(data_set, images, draw, epochs, arch, variant)


def _measure(cell: Cell, chosen: argparse.Namespace, weights: Path, known: dict) -> None:
    began, load = time.monotonic(), round(os.getloadavg()[0], 1)
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            folder = draw_folder(
                chosen.data / cell.data_set, cell.images, cell.draw, chosen.scratch
            )
            row = measure(
                folder,
                VARIANTS[cell.variant],
                epochs=cell.epochs,
                seed=cell.draw,
                scratch=chosen.scratch,
                weights=weights if cell.arch == "efficientnet" else None,
                known=known,
            )
    except Exception:
        traceback.print_exc()
        print(f"{cell.name}: failed", file=sys.stderr, flush=True)
        return
    row = {"date": date.today().isoformat(), "load_before": load, **row}
    with FileLock(chosen.scratch / "results.lock"):
        _keep({MACHINE: _about_machine(), cell.name: row}, chosen.results)
    print(f"{cell.name}: {time.monotonic() - began:.0f} s", flush=True)


def _about_machine() -> dict[str, object]:
    versions = {name: version(name) for name in _PACKAGES}
    return {"machine": describe_machine(), "versions": versions}


def _keep(new: dict[str, dict], results_file: Path) -> None:
    """Add rows, each a line of the file."""
    rows = read_results(results_file) | new
    lines = (f"{json.dumps(one)}: {json.dumps(what)}" for one, what in rows.items())
    results_file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = results_file.with_suffix(".unfinished")
    unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    unfinished.replace(results_file)


if __name__ == "__main__":
    main()
