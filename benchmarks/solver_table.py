"""The table of large heads: what solving one takes, and a pass over a million images."""

from table import circumstances, table

_MEGABYTES = 4000  # for a million images and 1,000 classes


def solver_markdown(results: dict[str, dict]) -> str:
    """What was measured, how long a million would take by it, and how; empty where it was not."""
    whole, once = results.get("solver / solve"), results.get("solver / pass")
    if not whole or not once:
        return ""
    # So many images have two folds: what trains one is half of them.
    passes = 2 * whole["passes_of_a_fold"] / 2 + whole["passes_of_all"]
    passes += whole["rows_for_penalty"] / once["images"]
    hours = (once["preparation_s"] + passes * once["seconds"]) / 3600
    rows = [
        [f"{_size(whole)}: seconds in all", f"{whole['seconds']:.0f}", ""],
        ["MB at most", f"{whole['peak_mb']:,.0f}", ""],
        [f"{_size(once)}: seconds of a pass", f"{once['seconds']:.0f}", ""],
        ["MB at most", f"{once['peak_mb']:,.0f}", f"less than {_MEGABYTES:,}"],
        [f"hours of {passes:.0f} passes, projected", f"{hours:.1f}", ""],
    ]
    conditions = (
        f"*Images x classes, of {once['features']:,} random features in a mapped file of half "
        "precision. A pass is one evaluation of loss and gradients over all images. Their number "
        "is by the smaller problem, for the penalty by cross-validation, two folds (the smaller "
        "problem has five) and all images. MB of memory that is no file's, above that before, by "
        f"samples every 20 ms. {once['threads']} threads. {circumstances([whole, once])}.*"
    )
    return "\n\n".join([table(["head", "measured", "target"], rows), conditions])


def _size(row: dict) -> str:
    return f"{row['images']:,} x {row['classes']:,}"


def all_solver_markdown(results: dict[str, dict]) -> str:
    """Every number of both rows, with its unit at the end of its name."""
    numbers = [
        [name, key, f"{number:,}"]
        for name in ("solver / solve", "solver / pass")
        for key, number in results[name].items()
        if isinstance(number, int | float)
    ]
    return table(["row", "number", "measured"], numbers)
