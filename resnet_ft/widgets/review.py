"""Go through the findings of an audit image by image, and decide; every decision is saved."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import ipywidgets
import pandas as pd

from resnet_ft.audit.audit import Audit
from resnet_ft.data.decisions import DecisionLog
from resnet_ft.errors import ImageError
from resnet_ft.visualize.images import jpeg_thumbnail

_SIDE = 260
_ALL = "all findings"
_ABOUT_COPIES = ("leakage", "label conflict", "duplicate")
_MENUS = (("Class", "class_name", "relabel"), ("Split", "split", "move"))


def review_dataset(audit: Audit, file: str | Path) -> ipywidgets.VBox:
    """A widget that shows the findings of an audit one by one, copies as pairs.

    Each image can be kept, excluded, given to another class or moved to another split. Every
    decision is written to the CSV file at once, for `make_dataloaders(decisions=file)`, and can be
    undone. Works with ipywidgets 7 and 8; the keyboard reaches every control.
    """
    return _Review(audit, DecisionLog(file)).widget


class _Review:
    def __init__(self, audit: Audit, log: DecisionLog):
        self.audit, self.log = audit, log
        # Only what is about an image can be decided; copies are shown as pairs.
        originals = audit.pairs.set_index("path")["other"]
        issues = audit.issues[audit.issues["path"].isin(audit.images["path"])]
        paths = [
            [path, originals[path]] if issue in _ABOUT_COPIES else [path]
            for path, issue in zip(issues["path"], issues["issue"], strict=True)
        ]
        self.items = issues[["issue", "detail"]].assign(paths=paths)
        counts = self.items["issue"].value_counts(sort=False)
        names = [(f"{name} ({count})", name) for name, count in counts.items()]
        self.issue = ipywidgets.Dropdown(options=[(f"{_ALL} ({len(self.items)})", _ALL), *names])
        self.place = ipywidgets.BoundedIntText(value=1, min=1, layout={"width": "80px"})
        self.heading, self.status = ipywidgets.HTML(), ipywidgets.HTML()
        self.cards = ipywidgets.HBox()
        self.issue.observe(self._choose, names="value")
        self.place.observe(lambda _: self._draw(), names="value")
        steps = [
            _button("Back", lambda: self._step(-1), "arrow-left"),
            self.place,
            _button("Next", lambda: self._step(1), "arrow-right"),
            _button("Undo", self._undo, "undo"),
        ]
        self.widget = ipywidgets.VBox(
            [ipywidgets.HBox([self.issue, *steps]), self.heading, self.cards, self.status]
        )
        self._choose()

    @property
    def shown(self) -> pd.DataFrame:
        chosen = self.issue.value
        return self.items if chosen == _ALL else self.items[self.items["issue"] == chosen]

    def _choose(self, _: object = None) -> None:
        self.place.max = max(1, len(self.shown))
        self.place.value = 1
        self._draw()

    def _step(self, by: int) -> None:
        self.place.value += by  # the widget keeps it within its range

    def _undo(self) -> None:
        path = self.log.undo()
        self._draw(f"Undone: {path}" if path else "There is nothing to undo.")

    def _draw(self, message: str = "") -> None:
        if self.shown.empty:
            self.heading.value = "The audit found nothing about single images."
            return
        item = self.shown.iloc[self.place.value - 1]
        number = f"{self.place.value} of {len(self.shown)}"
        detail = f": {escape(item['detail'])}" if item["detail"] else ""
        self.heading.value = f"<b>{number} · {escape(item['issue'])}</b>{detail}"
        old = self.cards.children
        self.cards.children = [self._card(path, item["issue"]) for path in item["paths"]]
        for card in old:
            _close(card)
        known = self.log.decided()
        decided = sum(not known.isdisjoint(paths) for paths in self.shown["paths"])
        self.status.value = (
            f"{decided} of {len(self.shown)} decided, in <code>{escape(str(self.log.file))}</code>"
            f"<br>{escape(message)}"
        )

    def _card(self, path: str, reason: str) -> ipywidgets.VBox:
        def decide(decision: str, value: str = "") -> None:
            self.log.decide(path, decision, value, reason=reason)
            self._draw()

        (decision, value), images = self.log[path], self.audit.images.set_index("path")
        now = f"{decision} {value}".strip() or "undecided"
        buttons = [
            _button("Keep", lambda: decide("keep"), "check"),
            _button("Exclude", lambda: decide("exclude"), "times"),
        ]
        menus = []
        for name, column, choice in _MENUS:
            options, chosen = sorted(images[column].unique()), images.at[path, column]
            if decision == choice and value in options:
                chosen = value
            menu = ipywidgets.Dropdown(options=options, value=chosen, description=name)
            menu.observe(lambda change, choice=choice: decide(choice, change["new"]), names="value")
            menus.append(menu)
        caption = f"<code>{escape(path)}</code><br>decision: <b>{escape(now)}</b>"
        image, text = _image(self.audit.root / path), ipywidgets.HTML(caption)
        parts = [image, text, ipywidgets.HBox(buttons), *menus]
        return ipywidgets.VBox(parts, layout={"margin": "0 16px 0 0"})


def _image(path: Path) -> ipywidgets.Widget:
    try:
        return ipywidgets.Image(value=jpeg_thumbnail(path, (2 * _SIDE, _SIDE)), format="jpeg")
    except ImageError as error:
        return ipywidgets.HTML(f"<i>cannot be shown: {escape(error.reason)}</i>")


def _close(widget: ipywidgets.Widget) -> None:
    """Free a widget and all below it, in Python and in the browser."""
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()


def _button(label: str, action: Callable[[], None], icon: str) -> ipywidgets.Button:
    button = ipywidgets.Button(description=label, icon=icon, layout={"width": "100px"})
    button.on_click(lambda _: action())
    return button
