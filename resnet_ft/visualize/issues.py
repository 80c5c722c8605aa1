"""The findings of an audit as a table with thumbnails; a click on a column's name sorts it."""

import base64
from html import escape
from pathlib import Path

import pandas as pd

from resnet_ft.data.folders import is_image
from resnet_ft.errors import ImageError
from resnet_ft.notebook import NO_FORMULAS, Html, scrolling, shorten, show_table
from resnet_ft.visualize.images import jpeg_thumbnail

_SIDE = 72
_LONGEST_PATH = 48  # characters
_COLUMNS = ("severity", "issue", "path", "detail")
_COLOURS = {"error": "#D55E00", "warning": "#B37400", "info": "#0072B2"}  # the serious ones first
_CELL = "<td style='text-align:left'"

# Sorts the rows by a cell's data-order or text; in reverse order when they are sorted already.
_SORT = """
(function (head) {
  const table = head.closest("table"), body = table.tBodies[0];
  const column = [...head.parentNode.children].indexOf(head);
  const key = (row) => row.cells[column].dataset.order || row.cells[column].textContent;
  const rows = [...body.rows];
  const sorted = [...rows].sort((a, b) => key(a).localeCompare(key(b), undefined, {numeric: true}));
  if (sorted.every((row, i) => row === rows[i])) sorted.reverse();
  body.append(...sorted);
})(this)
"""


def show_issues(root: str | Path, issues: pd.DataFrame, *, num_issues: int = 60) -> Html:
    """A table of findings, each with a thumbnail; a click on a column's name sorts by it.

    `root` and `issues` are those of an `Audit`; `issues` may be a part of them.
    """
    if issues.empty:
        return show_table(issues, empty="The audit has found nothing.")
    shown = issues.head(num_issues)
    heads = "".join(
        f"<th style='text-align:left;white-space:nowrap;cursor:pointer' onclick='{escape(_SORT)}' "
        f"title='sort by {name}'>{name} ⇅</th>"
        for name in _COLUMNS
    )
    rows = ""
    for issue in shown.to_dict("records"):
        path, severity = issue["path"], issue["severity"]
        short, whole = escape(shorten(path, _LONGEST_PATH)), escape(path)
        cells = [
            f"<td style='width:{_SIDE}px;text-align:left'>{_thumbnail(Path(root, path))}",
            f"{_CELL} data-order='{list(_COLOURS).index(severity)}'>"
            f"<b style='color:{_COLOURS[severity]}'>{severity}</b>",
            f"{_CELL}>{escape(issue['issue'])}",
            f"{_CELL}><code style='white-space:nowrap' title='{whole}'>{short}</code>",
            f"{_CELL}>{escape(issue['detail'])}",
        ]
        rows += f"<tr>{'</td>'.join(cells)}</td></tr>"
    note = "" if len(shown) == len(issues) else f"<p>{len(shown)} of {len(issues)} findings.</p>"
    return Html(
        scrolling(
            f"<table class='{NO_FORMULAS}' style='font-size:13px'><thead><tr><th></th>{heads}</tr>"
            f"</thead><tbody>{rows}</tbody></table>"
        )
        + note,
        show_table(shown, index=False).text,
    )


def _thumbnail(path: Path) -> str:
    if not is_image(str(path)):
        return ""
    try:
        data = base64.b64encode(jpeg_thumbnail(path, (_SIDE, _SIDE))).decode()
    except ImageError:
        return "<span style='color:#6B7280'>cannot be shown</span>"
    return f"<img alt='' src='data:image/jpeg;base64,{data}'>"
