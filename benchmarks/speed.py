"""Loading, staging, training and prediction beside other libraries, and a million files.

`make bench-speed` runs this: only rows that benchmarks/results/speed.json lacks, or all of them
with --fresh; `--only training` leaves the others alone. It ends with the tables of report.py.
"""

import argparse
import shutil
import sys
from pathlib import Path

from photographs import LARGE, SMALL, copy_photographs, make_photographs
from report import SPEED, write_report
from runner import BENCHMARKS, Row, forget, run_missing

ROOT = BENCHMARKS.parent
SCRATCH = ROOT / ".bench-data"
_PHOTOS = ROOT.parent / "shared" / "data" / "hymenoptera"
_PACKAGES = ("torch", "torchvision", "pillow")

# Named as in `benchmarks/loading` and `benchmarks/training`: importing those modules here would
# load every library.
_LOADING = {
    "resnet_ft": ["cache_dir"],
    "torchvision": ["transforms", "transforms.v2"],
    "timm": ["use_prefetcher=True", "use_prefetcher=False"],
    "fastai": ["Flip of batches", "FlipItem"],
    "huggingface": ["transforms", "transforms.v2"],
}
_TRAINING = {
    "resnet_ft": ["frozen", "second head", "layer4"],
    "tutorial": ["frozen", "layer4"],
    "fastai": ["frozen", "layer4"],
    "huggingface": ["frozen", "layer4"],
    "lightning": ["frozen", "layer4"],
}
_LOADS_WITH = {"torchvision": (), "huggingface": ("datasets",)}
_TRAINS_WITH = {"tutorial": (), "huggingface": ("transformers", "datasets")}


def main() -> None:
    arguments = _arguments()
    SCRATCH.mkdir(exist_ok=True)
    for interrupted in SCRATCH.glob("kept-*"):
        shutil.rmtree(interrupted)
    kinds = [arguments.only] if arguments.only else list(_ROWS)
    rows = [row for kind in kinds for row in _ROWS[kind](arguments.photos)]
    if arguments.fresh:
        forget(rows, SPEED)
    failed = run_missing(rows, SPEED)
    write_report()
    if failed:
        sys.exit(f"Not measured: {', '.join(failed)}. Running again measures only these.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="measure every row anew")
    parser.add_argument("--only", choices=_ROWS, help="rows of one kind")
    parser.add_argument("--photos", type=Path, default=_PHOTOS, help="photographs by class")
    return parser.parse_args()


def _loading_rows(photos: Path) -> list[Row]:
    folders = [make_photographs(kind, photos, SCRATCH) for kind in (SMALL, LARGE)]
    defaults = ("-m", "loading.defaults", str(folders[0]))
    return [Row("default augmentation", defaults, (*_PACKAGES, "resnet_ft"))] + [
        Row(
            f"loading / {folder.name} / {library} / {configuration}",
            ("-m", "loading.measure", str(folder), library, configuration),
            _PACKAGES + _LOADS_WITH.get(library, (library,)),
        )
        for folder in folders
        for library, configurations in _LOADING.items()
        for configuration in configurations
    ]


def _staging_rows(_photos: Path) -> list[Row]:
    return [Row("staging", ("staging.py",), ("resnet_ft",))]


def _scale_rows(_photos: Path) -> list[Row]:
    return [Row("scale", ("scale.py",), ("resnet_ft", "torch", "pandas", "pillow"))]


def _solver_rows(_photos: Path) -> list[Row]:
    packages = ("resnet_ft", "torch")
    return [
        Row("solver / solve", ("solver.py", "solve", "100000", "100"), packages),
        Row("solver / pass", ("solver.py", "pass", "1000000", "1000"), packages),
    ]


def _training_rows(photos: Path) -> list[Row]:
    folder = str(copy_photographs(photos, SCRATCH))
    rows = [
        Row(
            f"training / {library} / {recipe}",
            ("-m", "training.measure", folder, library, recipe),
            _PACKAGES + _TRAINS_WITH.get(library, (library,)),
        )
        for library, recipes in _TRAINING.items()
        for recipe in recipes
    ]
    bare = ("-m", "training.bare", folder)
    return [*rows, Row("training / resnet_ft / nothing frozen", bare, (*_PACKAGES, "resnet_ft"))]


def _predicting_rows(photos: Path) -> list[Row]:
    folders = [make_photographs(kind, photos, SCRATCH) for kind in (SMALL, LARGE)]
    packages = (*_PACKAGES, "resnet_ft", "timm", "fastai", "transformers")
    photograph = str(next((folders[0] / "Val").rglob("*.jpg")))
    first = ("-m", "predicting.first", str(SCRATCH), photograph)
    return [
        Row("predicting / first answer", first, (*_PACKAGES, "resnet_ft")),
        *(
            Row(
                f"predicting / {folder.name} / {arch}",
                ("-m", "predicting.measure", str(folder), arch),
                packages,
            )
            for arch in ("resnet18", "resnet101")
            for folder in folders
        ),
    ]


_ROWS = {
    "loading": _loading_rows,
    "staging": _staging_rows,
    "training": _training_rows,
    "predicting": _predicting_rows,
    "scale": _scale_rows,
    "solver": _solver_rows,
}


if __name__ == "__main__":
    main()
