"""The tables of training: seconds by library, and beside the targets."""

import statistics

from table import OURS, circumstances, table

_NAMES = {
    OURS: "**resnet_ft**",
    "huggingface": "Hugging Face Trainer",
    "lightning": "Lightning",
    "tutorial": "PyTorch tutorial",
}
_COLUMNS = {
    "frozen": "10 epochs, backbone frozen",
    "second head": "again with another head",
    "layer4": "an epoch of layer4 and head",
}
_TARGETS = {"frozen": 11, "second head": 100, "layer4": 3}  # at least so many times faster
_BARE = "nothing frozen"
_BARE_TARGET = 0.03
_EPOCHS = 10
Seconds = dict[str, dict[str, float]]  # what trains -> library -> seconds


def training_markdown(results: dict[str, dict]) -> str:
    """Seconds by library, what that is beside the targets, and how it was measured.

    Empty where nothing of it was measured.
    """
    rows = _rows(results)
    if not rows:
        return ""
    columns = _columns(rows)
    measured = {library for seconds in columns.values() for library in seconds}
    libraries = [OURS, *sorted(measured - {OURS})]
    cells = [
        [_NAMES.get(library, library)]
        + [_number(columns[recipe].get(library)) for recipe in _COLUMNS]
        for library in libraries
    ]
    comparisons = _comparisons(columns) + _beside_the_bare_loop(rows)
    tables = [
        table(["seconds", *_COLUMNS.values()], cells),
        table(["beside the fastest other", "measured", "target"], comparisons),
        _conditions(rows),
    ]
    return "\n\n".join(tables)


def all_training_markdown(results: dict[str, dict]) -> str:
    """The seconds of every epoch that was measured, and of every pass beside the bare loop."""
    rows = _rows(results)
    trainings = [
        [row["recipe"], row["library"], f"{row['seconds']:g}", _list(row, "epochs")]
        for row in sorted(rows, key=lambda row: row["recipe"])
        if "epochs" in row
    ]
    passes = [
        [loop.replace("_", " "), _list(row, loop)]
        for row in rows
        if row["recipe"] == _BARE
        for loop in ("train_model", "bare", "bare_channels_last")
    ]
    header = ["what trains", "library", "seconds in all", "of each epoch"]
    bare_header = [f"{_BARE}: loop", "seconds of each pass over the training images"]
    return "\n\n".join([table(header, trainings), table(bare_header, passes)])


def _rows(results: dict[str, dict]) -> list[dict]:
    return [row for name, row in results.items() if name.startswith("training / ")]


def _columns(rows: list[dict]) -> Seconds:
    columns = {
        recipe: {row["library"]: _seconds(row) for row in rows if row["recipe"] == recipe}
        for recipe in _COLUMNS
    }
    # The others keep nothing, so their second run is like the first.
    again = {library: seconds for library, seconds in columns["frozen"].items() if library != OURS}
    columns["second head"] |= again
    return columns


def _seconds(row: dict) -> float:
    """Of an epoch after the first, or of all, where epochs that were not run are like the last."""
    if row["recipe"] == "layer4":
        return statistics.median(row["epochs"][1:])
    return row["seconds"] + (_EPOCHS - len(row["epochs"])) * row["epochs"][-1]


def _comparisons(columns: Seconds) -> list[list[str]]:
    rows = []
    for recipe, target in _TARGETS.items():
        others = dict(columns[recipe])
        ours = others.pop(OURS, None)
        if ours and others:
            other = min(others, key=others.get)
            what = f"{_COLUMNS[recipe]}, beside {_NAMES.get(other, other)}"
            ratio = f"{others[other] / ours:.1f} times faster"
            rows.append([what, ratio, f"at least {target} times"])
    return rows


def _beside_the_bare_loop(rows: list[dict]) -> list[list[str]]:
    what = f"{_BARE}, `train_model` beside a bare loop of forward, backward and step"
    target = f"at most {_BARE_TARGET:.0%} slower"
    same = "the same, where the bare loop takes channels_last memory too"
    of_loops = [row for row in rows if row["recipe"] == _BARE]
    return [
        line
        for row in of_loops
        for line in (
            [what, _slower(row, "bare"), target],
            [same, _slower(row, "bare_channels_last"), ""],
        )
    ]


def _slower(row: dict, loop: str) -> str:
    """What `train_model` takes beside a loop, by the median of the pairs of passes."""
    pairs = zip(row["train_model"], row[loop], strict=True)
    more = statistics.median(ours / bare for ours, bare in pairs) - 1
    return f"{abs(more):.1%} {'slower' if more > 0 else 'faster'}"


def _conditions(rows: list[dict]) -> str:
    return (
        "*ResNet101 with random weights in float32 on the CPU; 80 photographs of ants and bees to "
        "train on and 40 to validate on after every epoch, 224 pixels, batches of 16, two workers. "
        "Seconds are those from start to end, with building the loaders and what is computed "
        "before the first epoch; of layer4 and head, those of an epoch after the first. "
        "**The others ran 2 epochs and are scaled to 10: the second one counts nine times.** They "
        "keep nothing, so another head takes them as long as the first. resnet_ft ran every epoch; "
        "to the frozen backbone it shows images as in evaluation, before layer4 in two varied "
        "views. fastai trains the BatchNorm of frozen layers, as is its default. The bare loop has "
        "its images as tensors in memory, `train_model` from files, and its network in "
        "channels_last memory; both are timed without validation. The seconds of every epoch are "
        "in `benchmarks/results.md`. "
        f"{circumstances(rows)}.*"
    )


def _list(row: dict, name: str) -> str:
    return ", ".join(f"{seconds:g}" for seconds in row[name])


def _number(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.1f}"
