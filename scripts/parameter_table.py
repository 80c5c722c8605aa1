"""Write the parameters of notebook 3 as a table into docs/parameters.md.

`python scripts/parameter_table.py`, after the cell "Your parameters" has changed.
"""

import ast
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "03_train.ipynb"
PAGE = ROOT / "docs" / "parameters.md"
_PLACE = re.compile(r"(<!-- parameters -->\n).*?(<!-- /parameters -->)", re.DOTALL)


def parameters(notebook: Path) -> list[tuple[str, str, str]]:
    """Name, default and meaning of each parameter.

    The meaning is the comment beside it or, of a field of Colab's form, the text above it.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    cell = next(cell for cell in cells if cell.metadata.get("tags") == ["parameters"])
    rows, above = [], []
    for line in cell.source.splitlines():
        if line.startswith("# @markdown "):
            above.append(line.removeprefix("# @markdown "))
        elif ast.parse(line).body:
            statement, comment = line.split("  # ", 1)
            name, value = statement.split(" = ", 1)
            meaning = " ".join(above) if comment.startswith("@param ") else comment
            rows.append((name, value, meaning))
            above = []
    return rows


def with_table(page: str, rows: list[tuple[str, str, str]]) -> str:
    """The page with this table between its markers."""
    lines = ["| parameter | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | `{value}` | {comment} |" for name, value, comment in rows]
    table = "\n".join(lines)
    return _PLACE.sub(lambda place: f"{place[1]}\n{table}\n\n{place[2]}", page)


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, parameters(NOTEBOOK)), encoding="utf-8")
    print(f"Written into {PAGE.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
