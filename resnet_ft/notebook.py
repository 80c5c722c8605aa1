"""What notebooks need: bars that leave no trace, tables, and the cells that were executed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from resnet_ft import frontend


def progress_bar(
    iterable: Iterable | None = None,
    description: str | None = None,
    total: int | None = None,
    *,
    unit: str = "image",
    initial: int = 0,
    bar_format: str | None = None,
) -> tqdm:
    """A tqdm bar that disappears when it is done, and that is not shown where nobody watches."""
    bar = tqdm(
        iterable,
        description,
        total,
        leave=False,
        unit=unit,
        unit_scale=unit == "B",  # bytes: 1.5M rather than 1500000
        initial=initial,
        bar_format=bar_format,
        disable=frontend.runs_headless() or None,  # None: shown in a terminal only
    )
    if (box := getattr(bar, "container", None)) is not None:
        box.layout.flex_flow = "row wrap"  # on a phone, a notebook's bar takes three lines
    return bar


def executed_cells() -> tuple[dict[str, Any], list[str]]:
    """The variables of the notebook that runs this code, and the sources of its cells so far.

    Nothing outside of IPython.
    """
    if (shell := frontend.shell()) is None:
        return {}, []
    return shell.user_ns, [cell for cell in shell.user_ns.get("In", []) if cell.strip()]


NO_FORMULAS = "tex2jax_ignore mathjax_ignore"  # the class of HTML that MathJax leaves alone
_MOST_ROWS = 1000
_Format = str | Callable[[Any], str]  # how to write a number


@dataclass(frozen=True)
class Html:
    """HTML that a notebook displays; `text` is for where no HTML is displayed."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return as_unicode(self.html)

    def __repr__(self) -> str:
        return as_unicode(self.text)


def as_unicode(text: str) -> str:
    """Text that can be shown, with "?" for the bytes of a file's name that are no Unicode.

    As they are, notebooks cannot be saved with them, and Matplotlib cannot draw them.
    """
    return text.encode("utf-8", "replace").decode()


def percent(probability: float) -> str:
    """A probability in percent with one decimal, ">99.9%" or "<0.1%" where it rounds to certainty.

    A model is never certain: a probability of 99.96% should not read as one of 100%.
    """
    if probability >= 0.9995:
        return ">99.9%"
    return "<0.1%" if probability < 0.0005 else f"{probability:.1%}"


def shorten(name: str, length: int) -> str:
    """A name of at most `length` characters: of a longer one, "…" stands for its middle."""
    if len(name) <= length:
        return name
    tail = length // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"


def show_table(
    table: pd.DataFrame,
    formats: _Format | Mapping[str, _Format] | None = None,
    *,
    index: bool = True,
    empty: str = "There is nothing to list.",
    relative_to: str | Path | None = None,
) -> Html:
    """A table as a notebook shows it, with names as they are written.

    `formats` is how to write numbers, such as "{:.1%}" or `percent`: one for all columns or one by
    column; others have three decimals. `index=False` leaves the index out. Paths in a column `path`
    are shown from the folder `relative_to` on, if they are below it. What people called their files
    and classes is text here, neither HTML nor a formula. Of more than 1,000 rows, the first and the
    last are shown, with the number of all. A wide table scrolls. In place of a table without rows,
    the sentence `empty`.
    """
    if table.empty:
        return Html(f"<p>{escape(empty)}</p>", empty)
    if not isinstance(formats, Mapping):
        formats = dict.fromkeys(table.columns, formats) if formats else {}
    if relative_to is not None:
        table = table.assign(path=[below(path, relative_to) for path in table["path"]])
    options: dict[str, Any] = {
        "formatters": {
            name: one.format if isinstance(one, str) else one for name, one in formats.items()
        },
        "float_format": "{:.3f}".format,
        "index": index,
        "na_rep": "",
        "max_rows": _MOST_ROWS,
        "show_dimensions": "truncate",
    }
    with pd.option_context("display.max_colwidth", None):
        html = table.to_html(escape=True, border=0, classes=NO_FORMULAS, **options)
        return Html(scrolling(html), table.to_string(**options))


def below(path: str | Path, folder: str | Path) -> str:
    """A path from a folder on, if it is below it; else the path as it is."""
    path = Path(path)
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def scrolling(html: str) -> str:
    """HTML that scrolls sideways where the window is too narrow for it."""
    return f"<div style='overflow-x:auto'>{html}</div>"
