"""The stored results as tables: the main ones in docs/benchmarks.md, all of them in results.md.

`python benchmarks/report.py` renders what is stored and measures nothing.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accuracy_table import (
    accuracy_markdown,
    accuracy_summary_markdown,
    all_accuracies_markdown,
)
from gpu_table import all_gpu_markdown, gpu_markdown
from predicting_table import all_predicting_markdown, predicting_markdown
from recipe_plot import draw_recipe
from recipe_table import RECIPE, all_recipe_markdown, recipe_markdown
from runner import BENCHMARKS, read_results
from scale_table import all_scale_markdown, scale_markdown
from solver_table import all_solver_markdown, solver_markdown
from speed_table import all_speeds_markdown, speed_markdown
from table import write_between_markers
from training_table import all_training_markdown, training_markdown

SPEED = BENCHMARKS / "results" / "speed.json"
ACCURACY = BENCHMARKS / "results" / "accuracy.json"
GPU = BENCHMARKS / "results" / "gpu.json"
README = BENCHMARKS.parent / "README.md"
PAGE = BENCHMARKS.parent / "docs" / "benchmarks.md"
PICTURE = BENCHMARKS.parent / "docs" / "recipe.png"
REPORT = BENCHMARKS / "results.md"

_INTRODUCTION = """# What the benchmarks measured

This library beside those that one might use instead, by `make bench-speed` and
`make bench-accuracy`. The numbers are those in `benchmarks/results/`."""


@dataclass(frozen=True)
class _Section:
    """A part of results.md. `main` gives the tables that docs/benchmarks.md shows too."""

    title: str
    marker: str
    results: Path
    main: Callable[[dict[str, dict]], str]
    details: Callable[[dict[str, dict]], str]


_SECTIONS = (
    _Section("Loading and staging", "bench-speed", SPEED, speed_markdown, all_speeds_markdown),
    _Section("Training", "bench-training", SPEED, training_markdown, all_training_markdown),
    _Section(
        "From a folder to a CSV",
        "bench-predicting",
        SPEED,
        predicting_markdown,
        all_predicting_markdown,
    ),
    _Section("A million files", "bench-scale", SPEED, scale_markdown, all_scale_markdown),
    _Section("A large head", "bench-solver", SPEED, solver_markdown, all_solver_markdown),
    _Section("On a GPU", "bench-gpu", GPU, gpu_markdown, all_gpu_markdown),
    _Section("Accuracy", "bench-accuracy", ACCURACY, accuracy_markdown, all_accuracies_markdown),
    _Section("The recipe", "bench-recipe", RECIPE, recipe_markdown, all_recipe_markdown),
)


def write_report() -> None:
    """Print the main tables and write them between their markers in docs/benchmarks.md.

    The README gets the summary of accuracies, results.md every number. What was not measured is
    left out of results.md and left as it is elsewhere.
    """
    parts = [_INTRODUCTION]
    for section in _SECTIONS:
        results = read_results(section.results)
        if markdown := section.main(results):
            print(f"\n{markdown}")
            write_between_markers(PAGE, section.marker, markdown)
            details = section.details(results)
            parts.append(f"## {section.title}\n\n{markdown}\n\n### Every number\n\n{details}")
    if len(parts) == 1:
        sys.exit("Nothing is measured yet: run `make bench-speed`.")
    REPORT.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if summary := accuracy_summary_markdown(read_results(ACCURACY)):
        write_between_markers(README, "bench-summary", summary)
    if recipe := read_results(RECIPE):
        draw_recipe(recipe, PICTURE)
    written = [path.relative_to(BENCHMARKS.parent) for path in (PAGE, REPORT, README)]
    print(f"\nWritten into {', '.join(map(str, written))}.")


if __name__ == "__main__":
    write_report()
