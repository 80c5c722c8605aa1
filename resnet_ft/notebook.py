"""What notebooks need: bars that leave no trace, tables, and the cells that were executed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
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
    return tqdm(
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


def executed_cells() -> tuple[dict[str, Any], list[str]]:
    """The variables of the notebook that runs this code, and the sources of its cells so far.

    Nothing outside of IPython.
    """
    if (shell := frontend.shell()) is None:
        return {}, []
    return shell.user_ns, [cell for cell in shell.user_ns.get("In", []) if cell.strip()]


NO_FORMULAS = "tex2jax_ignore mathjax_ignore"  # the class of HTML that MathJax leaves alone
_MOST_ROWS = 1000


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


def show_table(
    table: pd.DataFrame,
    formats: str | Mapping[str, str] | None = None,
    *,
    index: bool = True,
    empty: str = "There is nothing to list.",
) -> Html:
    """A table as a notebook shows it, with names as they are written.

    `formats` is how to write numbers, such as "{:.1%}": one for all columns or one by column;
    others have three decimals. `index=False` leaves the index out. What people called their files
    and classes is text here, neither HTML nor a formula. Of more than 1,000 rows, the first and the
    last are shown, with the number of all. In place of a table without rows, the sentence `empty`.
    """
    if table.empty:
        return Html(f"<p>{escape(empty)}</p>", empty)
    if isinstance(formats, str):
        formats = dict.fromkeys(table.columns, formats)
    options: dict[str, Any] = {
        "formatters": {name: text.format for name, text in (formats or {}).items()},
        "float_format": "{:.3f}".format,
        "index": index,
        "na_rep": "",
        "max_rows": _MOST_ROWS,
        "show_dimensions": "truncate",
    }
    with pd.option_context("display.max_colwidth", None):
        html = table.to_html(escape=True, border=0, classes=NO_FORMULAS, **options)
        return Html(html, table.to_string(**options))
