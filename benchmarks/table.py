"""What the tables of all benchmarks share: Markdown, under what they were measured, a place."""

import re
from collections.abc import Iterable
from pathlib import Path

OURS = "resnet_ft"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown, with all columns but the first one to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def circumstances(rows: Iterable[dict]) -> str:
    """On which machines, with which versions and on which days these rows were measured."""
    rows = list(rows)
    machines = "; ".join(dict.fromkeys(row["machine"] for row in rows))
    versions = {name: text for row in rows for name, text in row["versions"].items()}
    versions.pop(OURS, None)
    packages = ", ".join(f"{name} {text}" for name, text in versions.items())
    dates = sorted({row["date"] for row in rows})
    return f"{machines}; {packages}; {' to '.join(dict.fromkeys(dates[:1] + dates[-1:]))}"


def write_between_markers(document: Path, marker: str, markdown: str) -> bool:
    """Replace the text between `<!-- marker -->` and `<!-- /marker -->`; say whether both exist."""
    text = document.read_text(encoding="utf-8")
    place = re.compile(f"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not place.search(text):
        return False
    written = place.sub(lambda found: f"{found[1]}\n{markdown}\n\n{found[2]}", text)
    document.write_text(written, encoding="utf-8")
    return True
