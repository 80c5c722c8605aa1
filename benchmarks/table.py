"""The stored results as a table: printed, and written into the README between its markers.

`python benchmarks/table.py` renders what is stored; `--all` prints every row that was measured.
"""

import re
import sys
from pathlib import Path

from runner import BENCHMARKS, read_results

SPEED = BENCHMARKS / "results" / "speed.json"
README = BENCHMARKS.parent / "README.md"

_OURS = "resnet_ft"
_NAMES = {
    _OURS: "**resnet_ft**",
    "torchvision": "torchvision (the tutorial)",
    "huggingface": "Hugging Face datasets",
}
_COLUMNS = {
    ("500x375", "first_epoch"): "500x375, first epoch",
    ("500x375", "later_epochs"): "500x375, later epochs",
    ("4000x3000", "first_epoch"): "12 megapixels, first epoch",
    ("4000x3000", "later_epochs"): "12 megapixels, later epochs",
}
# At least so many times the fastest of the others.
_TARGETS = {
    ("500x375", "later_epochs"): 4,
    ("4000x3000", "later_epochs"): 60,
    ("4000x3000", "first_epoch"): 1.7,
}
_STAGING_TARGET = 12


def show() -> None:
    """Print the table of the stored results, and put it into the README if it has the markers."""
    results = read_results(SPEED)
    if not results:
        sys.exit("Nothing is measured yet: run `make bench-speed`.")
    markdown = speed_markdown(results)
    print(f"\n{markdown}")
    if write_between_markers(README, "bench-speed", markdown):
        print(f"\nWritten into {README.name}.")


def speed_markdown(results: dict[str, dict]) -> str:
    """Images a second by library, what that is beside the targets, and how it was measured."""
    loading = [row for row in results.values() if "library" in row]
    fastest = _fastest(loading)
    others = sorted({row["library"] for row in loading} - {_OURS})
    libraries = [_OURS, *others]
    speeds = [
        [_NAMES.get(library, library)] + [_number(fastest.get((library, *key))) for key in _COLUMNS]
        for library in libraries
    ]
    tables = [
        _table(["images a second", *_COLUMNS.values()], speeds),
        _table(["beside the fastest other", "measured", "target"], _comparisons(fastest, results)),
        _conditions(results),
    ]
    return "\n\n".join(tables)


def _fastest(loading: list[dict]) -> dict[tuple[str, str, str], float]:
    """(library, data set, epoch) -> images a second of the library's fastest configuration."""
    fastest = {}
    for row in loading:
        for epoch in ("first_epoch", "later_epochs"):
            key = (row["library"], row["data_set"], epoch)
            fastest[key] = max(row[epoch], fastest.get(key, 0.0))
    return fastest


def _comparisons(fastest: dict[tuple, float], results: dict[str, dict]) -> list[list[str]]:
    rows = []
    for column, target in _TARGETS.items():
        others = {key[0]: speed for key, speed in fastest.items() if key[1:] == column}
        ours = others.pop(_OURS, None)
        if ours and others:
            other = max(others, key=others.get)
            what = f"{_COLUMNS[column]}, beside {_NAMES.get(other, other)}"
            rows.append([what, f"{ours / others[other]:.1f} times", f"at least {target} times"])
    if "staging" in results:
        what = "staging from a simulated slow disk, beside `shutil.copytree`"
        ratio = results["staging"]["ratio"]
        rows.append([what, f"{ratio:.1f} times", f"at least {_STAGING_TARGET} times"])
    return rows


def _conditions(results: dict[str, dict]) -> str:
    machines = "; ".join(dict.fromkeys(row["machine"] for row in results.values()))
    versions = {name: text for row in results.values() for name, text in row["versions"].items()}
    versions.pop(_OURS, None)
    dates = sorted({row["date"] for row in results.values()})
    days = " to ".join(dict.fromkeys(dates[:1] + dates[-1:]))
    return (
        "*Batches of 32 normalised float32 images of 224x224 pixels, randomly cropped and flipped, "
        "by two workers, files in the page cache. A first epoch includes building the loaders (and "
        "filling the cache); resnet_ft crops the cached image, whose short side is 256 pixels, the "
        "others the original. Each figure is that of a library's fastest configuration: all are in "
        f"`benchmarks/results/{SPEED.name}`. {machines}; "
        f"{', '.join(f'{name} {text}' for name, text in versions.items())}; {days}.*"
    )


def all_markdown(results: dict[str, dict]) -> str:
    """Every configuration that was measured."""
    columns = ["data_set", "library", "configuration", "first_epoch", "later_epochs"]
    loading = [row for row in results.values() if "library" in row]
    return _table(columns, [[str(row[column]) for column in columns] for row in loading])


def _number(speed: float | None) -> str:
    return "" if speed is None else f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_between_markers(document: Path, marker: str, markdown: str) -> bool:
    """Replace what stands between `<!-- marker -->` and `<!-- /marker -->`; is there such a place?

    Other benchmarks have markers of their own.
    """
    text = document.read_text(encoding="utf-8")
    place = re.compile(f"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not place.search(text):
        return False
    written = place.sub(lambda found: f"{found[1]}\n{markdown}\n\n{found[2]}", text)
    document.write_text(written, encoding="utf-8")
    return True


if __name__ == "__main__":
    if "--all" in sys.argv[1:]:
        print(all_markdown(read_results(SPEED)))
    else:
        show()
