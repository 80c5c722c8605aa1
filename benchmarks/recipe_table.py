"""The tables of the recipe: paired differences between variants, and between rules of choice."""

from runner import BENCHMARKS

RECIPE = BENCHMARKS / "results" / "recipe.json"
MACHINE = "machine"  # the entry of the results that is no row: machine and versions


def recipe_markdown(results: dict[str, dict]) -> str:
    """Differences to today's defaults in percentage points of test accuracy."""
    return f"{len(results)} rows"
