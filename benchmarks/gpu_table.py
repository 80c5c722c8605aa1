"""The tables of a GPU: images per second beside what binds, and where a step's time goes."""

from table import circumstances, table

_TARGET = 0.95


def gpu_markdown(results: dict[str, dict]) -> str:
    """Each loop beside the slower of its two limits, and how it was measured; empty without."""
    if not results:
        return ""
    header = [
        "images per second",
        "resnet_ft",
        "bare loop",
        "loader alone",
        "of what binds",
        "binds",
    ]
    rows = [
        [f"{_name(measured)}, {what}", *_beside(what, row, measured["loader"])]
        for measured in results.values()
        for what, row in measured["rows"].items()
    ]
    conditions = (
        f"*Target: at least {_TARGET} of what binds. Random weights, 224 pixels; the bare loop "
        "has a batch on the GPU already, the loader alone finishes its batches there. Training is "
        "of the default augmentation, without the first steps of an epoch; prediction of a folder "
        "is with a cache, from files alone, and beside forward passes. "
        f"{circumstances(results.values())}.*"
    )
    return "\n\n".join([table(header, rows), conditions])


def all_gpu_markdown(results: dict[str, dict]) -> str:
    """Milliseconds of a step of training, and of these, of waiting for its batch."""
    rows = [
        [f"{_name(measured)}, {what}", f"{row['step_ms']:.1f}", f"{row['waiting_ms']:.1f}"]
        for measured in results.values()
        for what, row in measured["rows"].items()
        if "step_ms" in row
    ]
    return table(["milliseconds", "a step", "of these, waiting for the batch"], rows)


def _name(measured: dict) -> str:
    arch, size, cores = (measured[name] for name in ("arch", "batch_size", "cores"))
    return f"{measured['gpu']}: {arch}, batches of {size}, {cores} cores"


def _beside(what: str, row: dict, loader: float) -> list[str]:
    if what == "prediction":
        speeds = [
            f"{row['resnet_ft']:,.0f} (files: {row['from files']:,.0f})",
            f"{row['bare']:,.0f}",
        ]
        return [*speeds, "", f"{row['resnet_ft'] / row['bare']:.2f}", "GPU"]
    least = min(row["bare"], loader)
    speeds = [f"{one:,.0f}" for one in (row["resnet_ft"], row["bare"], loader)]
    return [*speeds, f"{row['resnet_ft'] / least:.2f}", "GPU" if row["bare"] < loader else "loader"]
