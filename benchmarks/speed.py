"""Images a second, and staging, beside the libraries that people would pick instead.

`make bench-speed` runs this: only rows that benchmarks/results/speed.json lacks, or all of them
with --fresh. It ends with the table, which table.py writes into the README.
"""

import argparse
import shutil
import sys
from pathlib import Path

from photographs import LARGE, SMALL, make_photographs
from runner import BENCHMARKS, Row, run_missing
from table import SPEED, show

ROOT = BENCHMARKS.parent
SCRATCH = ROOT / ".bench-data"
_PHOTOS = ROOT.parent / "shared" / "data" / "hymenoptera"
_PACKAGES = ("torch", "torchvision", "pillow")

# Named as in `benchmarks/loading`: importing those modules here would load every library.
_CONFIGURATIONS = {
    "resnet_ft": ["cache_dir"],
    "torchvision": ["transforms", "transforms.v2"],
    "timm": ["use_prefetcher=True", "use_prefetcher=False"],
    "fastai": ["Flip of batches", "FlipItem"],
    "huggingface": ["transforms", "transforms.v2"],
}
_PACKAGE = {"huggingface": "datasets"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="measure every row anew")
    parser.add_argument("--photos", type=Path, default=_PHOTOS, help="photographs by class")
    arguments = parser.parse_args()
    if arguments.fresh:
        SPEED.unlink(missing_ok=True)
    failed = run_missing([*_loading_rows(arguments.photos), _staging_row()], SPEED)
    show()
    if failed:
        sys.exit(f"Not measured: {', '.join(failed)}. Running again measures only these.")


def _loading_rows(photos: Path) -> list[Row]:
    SCRATCH.mkdir(exist_ok=True)
    for interrupted in SCRATCH.glob("kept-*"):
        shutil.rmtree(interrupted)
    folders = [make_photographs(kind, photos, SCRATCH) for kind in (SMALL, LARGE)]
    return [
        Row(
            f"loading / {folder.name} / {library} / {configuration}",
            ("-m", "loading.measure", str(folder), library, configuration),
            tuple(dict.fromkeys((*_PACKAGES, _PACKAGE.get(library, library)))),
        )
        for folder in folders
        for library, configurations in _CONFIGURATIONS.items()
        for configuration in configurations
    ]


def _staging_row() -> Row:
    return Row("staging", ("staging.py",), ("resnet_ft",))


if __name__ == "__main__":
    main()
