"""The tables of the recipe: paired differences between variants, and between rules of choice.

A pair are two runs of the same data set, images per class, draw and epochs. Draws of a data set
share test images, so the standard error is that over (data set, draw), of the means within each.
"""

import math
from collections.abc import Callable

import pandas as pd
from runner import BENCHMARKS
from table import circumstances, table

RECIPE = BENCHMARKS / "results" / "recipe.json"
MACHINE = "machine"  # the entry of the results that is no row: machine and versions

_CELL = ["data_set", "images", "draw", "epochs"]
_CLUSTER = ["data_set", "draw"]
CHOSEN = "the most accurate of head, epochs, averages"  # as `train_model`
FINAL = "of that, head, points between: the lowest loss"  # as `fine_tune`
_IMAGES = ("5", "10", "20", "all")
_BETWEEN = ("0.25 end", "0.5 end", "0.75 end")


def _lowest(*names: str) -> Callable[[dict], str]:
    """The lowest plain validation loss of those that are there, the first of equals."""

    def choose(row: dict) -> str:
        return min(_there(row, names), key=lambda name: row["val"][name][0], default="none")

    return choose


def _highest(*names: str) -> Callable[[dict], str]:
    """The highest validation accuracy, ties by plain loss."""

    def choose(row: dict) -> str:
        def rank(name: str) -> tuple[float, float]:
            return row["val"][name][1], -row["val"][name][0]

        return max(_there(row, names), key=rank, default="none")

    return choose


def _there(row: dict, names: tuple[str, ...]) -> list[str]:
    last = len(row["epochs"])
    special = {
        "end": f"epoch {last}",
        "average": f"average {last}",
        "chosen": row["chosen"],
        "lowest": row["lowest_loss"],
    }
    named = (special.get(name, name) for name in names)
    return [name for name in named if name in row["val"]]


RULES: dict[str, Callable[[dict], str]] = {
    CHOSEN: lambda row: row["chosen"],
    FINAL: _lowest("chosen", "head", *_BETWEEN, "0.5 average"),
    "of that, head, halfway: the lowest loss": _lowest("chosen", "head", "0.5 average"),
    "of that, halfway: the lowest loss": _lowest("chosen", "0.5 average"),
    "of that, halfway: the most accurate": _highest("chosen", "0.5 average"),
    "lowest loss of head, epochs, averages": _lowest("head", "lowest"),
    "lowest loss of these, points between": _lowest(
        *("head", *_BETWEEN, "0.5 average", "end", "average", "lowest")
    ),
    "always the head": _lowest("head"),
    "always the end": _lowest("end"),
    "always the average": _lowest("average"),
    "always the average of the second half": _lowest("second half"),
    "always a quarter of the way to the end": _lowest("0.25 end"),
    "always halfway to the end": _lowest("0.5 end"),
    "always three quarters of the way": _lowest("0.75 end"),
}


def recipe_scores(results: dict[str, dict]) -> pd.DataFrame:
    """A row per run and rule: cell, variant, rule, and how good the weights are that it chooses.

    `accuracy` (percent) and `loss` are those on the test images, with `head_accuracy` of the solved
    head; `val_loss` and `head_val_loss` are plain validation losses. From random weights there is
    no head.
    """
    scored = []
    for name, row in results.items():
        if name == MACHINE:
            continue
        *arch, data_set, images, draw, epochs, variant = name.split(" / ", 4 + name.count("resnet"))
        cell = {
            "arch": arch[0] if arch else "efficientnet",
            "data_set": data_set,
            "images": images.removesuffix(" images"),
            "draw": int(draw.removeprefix("draw ")),
            "epochs": int(epochs.removesuffix(" epochs")),
            "variant": variant,
        }
        head = [row[split].get("head", [math.nan] * 2) for split in ("val", "test")]
        for rule, choose in RULES.items():
            if (chosen := choose(row)) in row["test"]:
                loss, accuracy = row["test"][chosen]
                scored.append(
                    {
                        **cell,
                        "rule": rule,
                        "chosen": chosen,
                        "accuracy": 100 * accuracy,
                        "loss": loss,
                        "val_loss": row["val"][chosen][0],
                        "head_accuracy": 100 * head[1][1],
                        "head_val_loss": head[0][0],
                        "seconds": row["seconds"],
                    }
                )
    return pd.DataFrame(scored)


def difference(ours: pd.DataFrame, others: pd.DataFrame, column: str = "accuracy") -> pd.Series:
    """Mean, standard error and number of pairs, of one run per cell less another."""
    pairs = ours.set_index(_CELL)[column] - others.set_index(_CELL)[column]
    pairs = pairs.dropna()
    clusters = pairs.groupby(_CLUSTER).mean()
    error = clusters.std() / math.sqrt(len(clusters)) if len(clusters) > 1 else math.nan
    return pd.Series({"mean": pairs.mean(), "error": error, "pairs": len(pairs)})


def recipe_markdown(results: dict[str, dict]) -> str:
    """Differences in points of test accuracy: between variants, and between what is chosen.

    Empty without a run of the defaults.
    """
    scores = recipe_scores(results)
    scores = scores[scores["arch"] == "efficientnet"] if len(scores) else scores
    if scores.empty or "today" not in set(scores["variant"]):
        return ""
    by = dict(list(scores.groupby(["variant", "rule"])))
    variants = [name for name in scores["variant"].unique() if name != "today"]
    rules = [rule for rule in RULES if rule != CHOSEN and ("today", rule) in by]
    columns = [*(f"{images} per class" for images in _IMAGES), "all cells", "test loss"]
    by_variant = [_line(name, by[name, FINAL], by["today", FINAL]) for name in variants]
    by_rule = [_line(rule, by["today", rule], by["today", CHOSEN]) for rule in rules]
    tables = [
        table(["varied, beside the defaults: test accuracy, points", *columns], by_variant),
        table([f"chosen at the end, beside {CHOSEN}", *columns], by_rule),
    ]
    return "\n\n".join([*tables, _conditions(results)])


def all_recipe_markdown(results: dict[str, dict]) -> str:
    """The defaults in every kind of cell: mean test accuracies over draws, and the longest run."""
    scores = recipe_scores(results)
    scores = scores[(scores["variant"] == "today") & (scores["arch"] == "efficientnet")]
    cells = scores.pivot_table(
        index=["data_set", "images", "epochs"], columns="rule", values="accuracy", sort=False
    )
    draws = scores[scores["rule"] == CHOSEN].groupby(["data_set", "images", "epochs"]).size()
    rules = ["always the head", CHOSEN, FINAL]
    rows = [
        [*map(str, cell), str(draws[cell]), *(f"{one:.1f}" for one in means[rules])]
        for cell, means in cells.sort_index().iterrows()
    ]
    return table(["data set", "images per class", "epochs", "draws", *rules], rows)


def _line(name: str, ours: pd.DataFrame, today: pd.DataFrame) -> list[str]:
    cells = [
        _text(difference(ours[ours["images"] == images], today[today["images"] == images]))
        for images in _IMAGES
    ]
    loss = difference(ours, today, "loss")
    return [name, *cells, _text(difference(ours, today)), _text(loss, digits=3)]


def _text(found: pd.Series, digits: int = 1) -> str:
    """Mean, standard error and pairs; in bold where it is more than two standard errors."""
    if not found["pairs"]:
        return ""
    mean, error = f"{found['mean']:+.{digits}f}", f"{found['error']:.{digits}f}"
    mark = "**" if abs(found["mean"]) > 2 * found["error"] else ""
    return f"{mark}{mean} ± {error}{mark} ({found['pairs']:.0f})"


def _conditions(results: dict[str, dict]) -> str:
    rows = [row for name, row in results.items() if name != MACHINE]
    about = {"versions": {}, **results.get(MACHINE, {"machine": "unknown"})}
    return (
        "*Paired differences, their standard errors over data sets and draws, and the number of "
        "pairs; bold: more than two standard errors. Variants: both by the choice of `fine_tune`, "
        f"{FINAL}. Losses are plain cross-entropy. EfficientNet-Lite0 "
        "with ImageNet weights, images of 128 pixels, batches of 32, 300 test images (500 for "
        f"all). {circumstances([{**about, 'date': row['date']} for row in rows])}.*"
    )
