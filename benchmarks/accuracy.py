"""Accuracy and time of whole recipes, beside those that people would pick instead.

`make bench-accuracy` runs this: only rows that benchmarks/results/accuracy.json lacks, or all of
them with --fresh.
"""

import argparse
import sys
from pathlib import Path

from report import ACCURACY, write_report
from runner import BENCHMARKS, Row, run_missing

_DATA = BENCHMARKS.parents[1] / "shared" / "data"
_DATA_SETS = ("hymenoptera", "flowers12", "signdigits10")
_SEEDS = (0, 1, 2)

# Named as in `benchmarks/finetuning`.
_RECIPES = {
    "tutorial": ["frozen", "full"],
    "fastai": ["fine_tune"],
    "resnet_ft": ["head", "fine_tune"],
}
_PACKAGES = {"tutorial": (), "fastai": ("fastai",), "resnet_ft": ("resnet_ft",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="measure every row anew")
    parser.add_argument("--data", type=Path, default=_DATA, help="the folder of the data sets")
    arguments = parser.parse_args()
    if arguments.fresh:
        ACCURACY.unlink(missing_ok=True)
    failed = run_missing(_rows(arguments.data), ACCURACY)
    write_report()
    if failed:
        sys.exit(f"Not measured: {', '.join(failed)}. Running again measures only these.")


def _rows(data: Path) -> list[Row]:
    return [
        Row(
            f"{data_set} / {library} / {recipe} / seed {seed}",
            ("-m", "finetuning.measure", str(data / data_set), library, recipe, str(seed)),
            ("torch", "torchvision", "timm", *_PACKAGES[library]),
        )
        for seed in _SEEDS
        for data_set in _DATA_SETS
        for library, recipes in _RECIPES.items()
        for recipe in recipes
    ]


if __name__ == "__main__":
    main()
