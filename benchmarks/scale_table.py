"""The table of a million files: seconds and memory of their index, loaders and predictions."""

from table import circumstances, table

_SECONDS, _MEGABYTES = 30, 200  # for an index of a million
_GROWTH = 2  # megabytes in an epoch: objects for the paths would be more than 100


def scale_markdown(results: dict[str, dict]) -> str:
    """What was measured beside the targets, and how; empty where it was not."""
    row = results.get("scale")
    if not row:
        return ""
    growth = row["worker_last_mb"] - row["worker_first_mb"]
    rows = [
        ["seconds to index them", f"{row['index_s']:.1f}", f"less than {_SECONDS}"],
        ["MB of the index", f"{row['index_mb']:.0f}", f"less than {_MEGABYTES}"],
        ["MB at most, while it is built", f"{row['index_peak_mb']:.0f}", ""],
        ["MB that a worker grows by in an epoch", f"{growth:.1f}", f"less than {_GROWTH}"],
    ]
    predicted = ""
    if "predict_s" in row:
        predicted = " The network that predicts them, three classes each, takes no time itself."
        in_all = row["predict_peak_mb"] + row["predict_workers_mb"]
        rows.append(["seconds to predict them into a CSV", f"{row['predict_s']:,.0f}", ""])
        rows.append(["MB of that at most, with its workers", f"{in_all:.0f}", "less than 500"])
    conditions = (
        f"*{row['files']:,} links to tiny images in the folders of 100 classes, listed from "
        "memory. MB of resident memory, above that of the imports; of a worker, one of two, its "
        "share of the memory that is no file's, after 100 batches and after all "
        f"{row['batches']:,}.{predicted} {circumstances([row])}.*"
    )
    return "\n\n".join([table([f"{row['files']:,} files", "measured", "target"], rows), conditions])


def all_scale_markdown(results: dict[str, dict]) -> str:
    """Every number, with its unit at the end of its name."""
    numbers = [(name, n) for name, n in results["scale"].items() if isinstance(n, int | float)]
    return table(["number", "measured"], [[name, f"{number:,}"] for name, number in numbers])
