"""The tables of prediction: images per second from a folder to a CSV, and beside the targets."""

import statistics

from table import OURS, circumstances, table

_NAMES = {
    OURS: "**resnet_ft**",
    "torchvision": "a plain DataLoader loop",
    "huggingface": "Hugging Face pipeline",
}
_ARCHITECTURES = {"resnet18": "ResNet18", "resnet101": "ResNet101"}
_DATA_SETS = {"500x375": "500x375", "4000x3000": "12 megapixels"}
_COLUMNS = [(arch, data_set) for arch in _ARCHITECTURES for data_set in _DATA_SETS]
# At least so many times the fastest of the others.
_TARGETS = {
    ("resnet18", "500x375"): 1.2,
    ("resnet101", "500x375"): 1.2,
    ("resnet18", "4000x3000"): 1.5,
}
_FIRST_TARGET = 1.5
_FIRST = "first answer"


def predicting_markdown(results: dict[str, dict]) -> str:
    """Images per second by library, what that is beside the targets, and how it was measured.

    Empty where nothing of it was measured.
    """
    rows = _rows(results)
    if not rows:
        return ""
    fastest = {key: _fastest(row) for key, row in rows.items()}
    libraries = sorted({library for speeds in fastest.values() for library in speeds} - {OURS})
    speeds = [
        [_NAMES.get(library, library)]
        + [_number(fastest.get(key, {}).get(library)) for key in _COLUMNS]
        for library in [OURS, *libraries]
    ]
    first = results.get(f"predicting / {_FIRST}")
    measured = [*rows.values(), *([first] if first else [])]
    tables = [
        table(["images per second", *map(_column, _COLUMNS)], speeds),
        table(["beside the fastest other", "measured", "target"], _comparisons(fastest, first)),
        _conditions(measured),
    ]
    return "\n\n".join(tables)


def all_predicting_markdown(results: dict[str, dict]) -> str:
    """Every pass of every configuration, and every start."""
    passes = [
        [_column(key), name, ", ".join(f"{speed:.1f}" for speed in speeds)]
        for key, row in _rows(results).items()
        for name, speeds in row["images_per_s"].items()
    ]
    tables = [table(["what", "library / configuration", "images per second"], passes)]
    if first := results.get(f"predicting / {_FIRST}"):
        starts = [
            [name, ", ".join(f"{one:.2f}" for one in seconds)]
            for name, seconds in first["seconds"].items()
        ]
        tables.append(table(["a first answer", "seconds of each process"], starts))
    return "\n\n".join(tables)


def _rows(results: dict[str, dict]) -> dict[tuple[str, str], dict]:
    return {
        (row["arch"], row["data_set"]): row
        for name, row in results.items()
        if name.startswith("predicting / ") and not name.endswith(_FIRST)
    }


def _fastest(row: dict) -> dict[str, float]:
    """Library -> images per second of its fastest configuration, the median of its passes."""
    fastest: dict[str, float] = {}
    for name, speeds in row["images_per_s"].items():
        library = name.split(" / ")[0]
        fastest[library] = max(statistics.median(speeds), fastest.get(library, 0.0))
    return fastest


def _comparisons(fastest: dict[tuple, dict[str, float]], first: dict | None) -> list[list[str]]:
    rows = []
    for key in _COLUMNS:
        others = dict(fastest.get(key, {}))
        ours = others.pop(OURS, None)
        if ours and others:
            other = max(others, key=others.get)
            target = f"at least {_TARGETS[key]} times" if key in _TARGETS else ""
            what = f"{_column(key)}, beside {_NAMES.get(other, other)}"
            rows.append([what, f"{ours / others[other]:.2f} times", target])
    if first:
        what = "a first answer, beside `import torch, torchvision` and a forward pass"
        measured = f"{first['ours_s'] / first['bare_s']:.2f} times as long"
        rows.append([what, measured, f"at most {_FIRST_TARGET} times"])
    return rows


def _column(key: tuple[str, str]) -> str:
    arch, data_set = key
    return f"{_ARCHITECTURES[arch]}, {_DATA_SETS[data_set]}"


def _conditions(measured: list[dict]) -> str:
    return (
        "*From a list of files, in the page cache, to a CSV with the most probable class of each: "
        "random weights of one file, 224 pixels, batches of 32, two workers, float32 on the CPU. "
        "The libraries take turns; each figure is the median of three passes of a library's "
        "fastest configuration. A first answer is that of a ResNet18's checkpoint to one "
        f"photograph, in a new process. {circumstances(measured)}.*"
    )


def _number(speed: float | None) -> str:
    return "" if speed is None else f"{speed:.1f}"
