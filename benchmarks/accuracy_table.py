"""The tables of accuracy: recipes by data set, beside the targets, and every single number."""

import math
import statistics
from dataclasses import dataclass
from itertools import product

from table import OURS, circumstances, table

_RECIPES = {
    (OURS, "head"): "**resnet_ft** head",
    (OURS, "fine_tune"): "**resnet_ft** fine_tune",
    ("tutorial", "frozen"): "PyTorch tutorial, frozen",
    ("tutorial", "full"): "PyTorch tutorial, full",
    ("fastai", "fine_tune"): "fastai fine_tune",
}
_DATA_SETS = ("hymenoptera", "flowers12", "signdigits10")
_HEAD, _FINE_TUNE, _FROZEN, _FULL, _FASTAI = _RECIPES
_SETTING = "EfficientNet-Lite0, 128 pixels"
_HEAD_TARGETS = {"hymenoptera": 0.92, "flowers12": 0.93}
_TIME_TARGET = 0.5


@dataclass(frozen=True)
class _Cell:
    """Over seeds: the mean accuracy, its standard error, the median of seconds."""

    accuracy: float
    error: float
    seconds: float

    def __str__(self) -> str:
        error = "" if math.isnan(self.error) else f" ± {self.error:.3f}"  # of one seed
        return f"{self.accuracy:.3f}{error} ({self.seconds:.0f} s)"


Cells = dict[tuple[str, tuple[str, str]], _Cell]


def accuracy_markdown(results: dict[str, dict]) -> str:
    """Accuracies by recipe, what they are beside the targets, and how they were measured.

    Empty where nothing was measured.
    """
    if not results:
        return ""
    cells = _cells(results)
    rows = []
    for recipe, name in _RECIPES.items():
        of_recipe = [cells.get((data_set, recipe)) for data_set in (*_DATA_SETS, "mean")]
        if any(of_recipe):
            rows.append([name, *("" if cell is None else str(cell) for cell in of_recipe)])
    tables = [table([f"validation accuracy: {_SETTING}", *_DATA_SETS, "mean"], rows)]
    if comparisons := _comparisons(cells):
        tables.append(table(["beside the others", "measured", "target"], comparisons))
    return "\n\n".join([*tables, _conditions(list(results.values()))])


def accuracy_summary_markdown(results: dict[str, dict]) -> str:
    """The means over the data sets alone; empty where no recipe was measured on all of them."""
    cells = _cells(results)
    means = {name: cells.get(("mean", recipe)) for recipe, name in _RECIPES.items()}
    rows = [
        [name, f"{mean.accuracy:.3f}", f"{mean.seconds:.0f} s"]
        for name, mean in means.items()
        if mean
    ]
    if not rows:
        return ""
    title = f"{_SETTING}, mean of {len(_DATA_SETS)} data sets"
    return "\n\n".join(
        [
            table([title, "validation accuracy", "from folder to model"], rows),
            "*Each recipe starts from the same ImageNet weights, on two CPU cores. "
            "[All numbers and how they were measured](docs/benchmarks.md)*",
        ]
    )


def all_accuracies_markdown(results: dict[str, dict]) -> str:
    """Every single number that was measured."""
    columns = ["data_set", "library", "recipe", "seed", "accuracy", "seconds"]
    rows = sorted(results.values(), key=lambda row: [row[column] for column in columns[:4]])
    return table(
        [column.replace("_", " ") for column in columns],
        [[str(row[column]) for column in columns] for row in rows],
    )


def _cells(results: dict[str, dict]) -> Cells:
    """Those of (data set, recipe), and of ("mean", recipe) where all data sets have the seeds."""
    runs = {}
    for row in results.values():
        of_recipe = runs.setdefault((row["data_set"], (row["library"], row["recipe"])), {})
        of_recipe[row["seed"]] = (row["accuracy"], row["seconds"])
    for recipe in _RECIPES:
        sets = [runs.get((data_set, recipe), {}) for data_set in _DATA_SETS]
        if sets[0] and all(set(sets[0]) == set(seeds) for seeds in sets):
            means = {seed: _mean_of(seeds[seed] for seeds in sets) for seed in sets[0]}
            runs["mean", recipe] = means
    return {key: _cell(list(of_recipe.values())) for key, of_recipe in runs.items()}


def _mean_of(numbers) -> tuple[float, ...]:
    return tuple(map(statistics.mean, zip(*numbers, strict=True)))


def _cell(numbers: list[tuple[float, float]]) -> _Cell:
    accuracies, seconds = zip(*numbers, strict=True)
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else math.nan
    error = spread / math.sqrt(len(accuracies))
    return _Cell(statistics.mean(accuracies), error, statistics.median(seconds))


def _comparisons(cells: Cells) -> list[list[str]]:
    """Those whose numbers are all there."""
    rows = []
    for data_set, target in _HEAD_TARGETS.items():
        ours, other = cells.get((data_set, _HEAD)), cells.get((data_set, _FROZEN))
        if ours and other:
            rows.append(
                [
                    f"head on {data_set}",
                    f"{ours.accuracy:.3f} in {ours.seconds:.0f} s",
                    f"at least {target}, in less than the {other.seconds:.0f} s of the tutorial's",
                ]
            )
    if all((data_set, recipe) in cells for data_set, recipe in product(_DATA_SETS, _RECIPES)):
        rows += _fine_tune_comparisons(cells)
    return rows


def _fine_tune_comparisons(cells: Cells) -> list[list[str]]:
    means = {recipe: cells["mean", recipe].accuracy for recipe in _RECIPES}
    highest = max(means[recipe] for recipe in (_FASTAI, _FROZEN, _FULL))
    _, gap, error = max(_below_the_best(cells, data_set) for data_set in _DATA_SETS)
    share = max(
        cells[data_set, _FINE_TUNE].seconds / cells[data_set, _FASTAI].seconds
        for data_set in _DATA_SETS
    )
    return [
        ["fine_tune, mean of the data sets", f"{means[_FINE_TUNE]:.3f}", f"above {highest:.3f}"],
        [
            "fine_tune below the best recipe, on the data set where it is most",
            f"{gap:.3f}",
            f"at most {error:.3f}, the best one's standard error",
        ],
        [
            "fine_tune's time beside fastai's, on the data set where it is most",
            f"{share:.2f} times",
            f"at most {_TIME_TARGET}",
        ],
    ]


def _below_the_best(cells: Cells, data_set: str) -> tuple[float, float, float]:
    """By how much it is more than the best recipe's standard error; the gap, and that error."""
    best = max((cells[data_set, recipe] for recipe in _RECIPES), key=lambda cell: cell.accuracy)
    gap = best.accuracy - cells[data_set, _FINE_TUNE].accuracy
    return gap - best.error, gap, best.error


def _conditions(rows: list[dict]) -> str:
    count = len({row["seed"] for row in rows})
    seeds = f"Mean and standard error of {count} seeds" if count > 1 else "One seed"
    return (
        f"*{seeds}, and the median of seconds from the folder to "
        "the trained model. EfficientNet-Lite0 with ImageNet weights, images of 128 pixels, two "
        "workers, on the CPU; all but what a recipe needs to be itself is the library's default. "
        f"Every single number is in `benchmarks/results.md`. {circumstances(rows)}.*"
    )
