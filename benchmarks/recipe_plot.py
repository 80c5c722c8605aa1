"""The recipe's tables as a figure: what each variant and each rule of choice changes."""

from pathlib import Path

import matplotlib.pyplot as plt
from recipe_table import CHOSEN, FINAL, difference, recipe_scores

from resnet_ft.visualize.style import BLUE, ORANGE, drawing

_FEWEST = 5  # pairs
_SHOWN = {  # rules, as the figure names them
    "always the head": "the head alone, always",
    "always the end": "the last epoch, always",
    "always halfway to the end": "halfway to the last, always",
    "of that, halfway: the most accurate": "halfway, if it is the most accurate",
    FINAL: "points between, the lowest loss: fine_tune",
}


def draw_recipe(results: dict[str, dict], file: Path) -> None:
    """Differences in test accuracy from the defaults, with two standard errors, as a PNG."""
    scores = recipe_scores(results)
    by = dict(list(scores[scores["arch"] == "efficientnet"].groupby(["variant", "rule"])))
    today = by["today", FINAL]
    lines = [
        (text, BLUE, "o", difference(by["today", rule], by["today", CHOSEN]))
        for rule, text in _SHOWN.items()
        if ("today", rule) in by
    ]
    lines += [
        (name, ORANGE, "D", difference(by[name, rule], today))
        for name, rule in by
        if name != "today" and rule == FINAL
    ]
    lines = [line for line in lines if line[-1]["pairs"] >= _FEWEST]
    with drawing(None, (6.8, 1.2 + 0.3 * len(lines))) as ax:
        for row, (_, colour, marker, found) in enumerate(reversed(lines)):
            mean, error = found["mean"], 2 * found["error"]
            ax.errorbar(mean, row, xerr=error, fmt=marker, color=colour, ms=6, lw=1.5)
        names = [f"{name} ({found['pairs']:.0f})" for name, *_, found in reversed(lines)]
        ax.set_yticks(range(len(lines)), names)
        ax.axvline(0, color="black", lw=1)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("points of test accuracy")
        ax.set_title("What is kept (dots),\nvariants of training (diamonds)")
        ax.figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(ax.figure)
