"""Go through suspicious images one by one, or many at once, and decide; every decision is saved."""

from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path

import ipywidgets
import pandas as pd

from resnet_ft.audit.audit import Audit
from resnet_ft.data.decisions import DecisionLog
from resnet_ft.data.index import read_layout
from resnet_ft.errors import ImageError
from resnet_ft.notebook import below, shorten
from resnet_ft.visualize.images import jpeg_thumbnail
from resnet_ft.widgets.buttons import listen, make_button, with_key

_SIDE = 260
_SMALL_SIDE = 130
_PAGE = 12  # images that are shown where several are decided at once
_ALL = "all findings"
_ABOUT_COPIES = ("leakage", "label conflict", "duplicate")
_MENUS = (("Class", "class_name", "relabel"), ("Split", "split", "move"))
_MOST_KEYS = 9  # classes that have a key


def review_dataset(audit: Audit, file: str | Path) -> ipywidgets.VBox:
    """A widget that shows the findings of an audit one by one, copies as pairs.

    Each image can be kept, excluded, given to another class and moved to another split, and several
    can be kept or excluded at once. Every decision is written to the CSV file at once, for
    `make_dataloaders(decisions=file)`, and can be undone. Works with ipywidgets 7 and 8; the
    keyboard reaches every control, and some have a key, which a line of help names.
    """
    # Only what is about an image can be decided; copies are shown as pairs.
    originals = audit.pairs.set_index("path")["other"]
    issues = audit.issues[audit.issues["path"].isin(audit.images["path"])]
    paths = [
        [path, originals[path]] if issue in _ABOUT_COPIES else [path]
        for path, issue in zip(issues["path"], issues["issue"], strict=True)
    ]
    items = issues[["issue", "detail"]].assign(paths=paths)
    nothing = "The audit found nothing about single images."
    return _Review(audit.root, audit.images, items, nothing, DecisionLog(file)).widget


def review_label_errors(
    errors: pd.DataFrame, data_dir: str | Path, file: str | Path
) -> ipywidgets.VBox:
    """The widget of `review_dataset` with the images of `find_label_errors`.

    `data_dir` is the data set that they are of, `file` that of its decisions. Images that are not
    in the data set are left out. Raises DatasetError for a missing folder.
    """
    index, _, _ = read_layout(data_dir)
    known = set(index.images)
    found = [
        ("label to check", f"labelled {row.label}, rather {row.suggested}", [path])
        for row in errors.itertuples()
        if (path := below(row.path, index.root)) in known
    ]
    items = pd.DataFrame(found, columns=["issue", "detail", "paths"])
    nothing = "There are no labels to check."
    return _Review(index.root, index.table, items, nothing, DecisionLog(file)).widget


class _Review:
    """`images` has `path`, `class_name` and `split`, `items` the columns issue, detail, paths."""

    def __init__(
        self, root: Path, images: pd.DataFrame, items: pd.DataFrame, nothing: str, log: DecisionLog
    ):
        self.root, self.items, self.nothing, self.log = root, items, nothing, log
        self.images = images.set_index("path")[["class_name", "split"]].astype(str)
        self.options = {name: sorted(set(column)) for name, column in self.images.items()}
        counts = items["issue"].value_counts(sort=False)
        names = [(f"{name} ({count})", name) for name, count in counts.items()]
        self.issue = ipywidgets.Dropdown(options=[(f"{_ALL} ({len(items)})", _ALL), *names])
        self.place = ipywidgets.BoundedIntText(value=1, min=1, layout={"width": "80px"})
        self.several = ipywidgets.ToggleButton(
            description="Several at once", icon="th", layout={"width": "140px"}
        )
        self.heading, self.status = ipywidgets.HTML(), ipywidgets.HTML()
        self.cards = ipywidgets.HBox(layout={"flex_flow": "row wrap"})
        self.issue.observe(self._choose, names="value")
        self.place.observe(lambda _: self._draw(), names="value")
        self.several.observe(lambda _: self._draw(), names="value")
        steps = [
            with_key(make_button("Back", lambda: self._step(-1), "arrow-left"), "k"),
            self.place,
            with_key(make_button("Next", lambda: self._step(1), "arrow-right"), "j"),
            with_key(make_button("Undo", self._undo, "undo"), "u"),
            self.several,
        ]
        bar = ipywidgets.HBox([self.issue, *steps], layout={"flex_flow": "row wrap"})
        parts = [bar, self.heading, self.cards, self.status, self._keys()]
        self.widget = ipywidgets.VBox(parts)
        listen(self.widget)
        self._choose()

    def _keys(self) -> ipywidgets.VBox:
        """A line of help, and a button with a key for each of the first classes."""
        classes = self.options["class_name"][:_MOST_KEYS]
        buttons = [
            with_key(
                make_button(f"{i} · {shorten(name, 18)}", partial(self._relabel, name)), str(i)
            )
            for i, name in enumerate(classes, start=1)
        ]
        for button in buttons:
            button.layout.width = "auto"
        numbers = "1" if len(classes) == 1 else f"1 to {len(classes)}"
        text = "While the pointer is here: <b>j</b> next, <b>k</b> back, <b>u</b> undo" + (
            f", <b>{numbers}</b> the class of the first image" if classes else ""
        )
        row = ipywidgets.HBox(buttons, layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([ipywidgets.HTML(f"<small>{text}</small>"), row])

    @property
    def shown(self) -> pd.DataFrame:
        chosen = self.issue.value
        return self.items if chosen == _ALL else self.items[self.items["issue"] == chosen]

    @property
    def page(self) -> pd.DataFrame:
        """The findings that are on view: one, or several."""
        start = self.place.value - 1
        return self.shown.iloc[start : start + (_PAGE if self.several.value else 1)]

    def _choose(self, _: object = None) -> None:
        self.place.max = max(1, len(self.shown))
        self.place.value = 1
        self._draw()

    def _step(self, by: int) -> None:
        pages = _PAGE if self.several.value else 1
        place = self.place.value + by * pages
        if 1 <= place <= len(self.shown):
            self.place.value = place
        else:
            self.place.value = 1 if by < 0 else self.place.value
            self._draw("This is the first one." if by < 0 else "This is the last one.")

    def _decide(
        self, paths: Sequence[str], decision: str, value: str = "", reason: str = ""
    ) -> None:
        self.log.decide(paths, decision, value, reason=reason)
        if decision in ("keep", "exclude") and not self.several.value:
            self._step(1)
        else:
            self._draw()

    def _relabel(self, class_name: str) -> None:
        if len(self.page) and not self.several.value:
            item = self.page.iloc[0]
            self._decide(item["paths"][:1], "relabel", class_name, item["issue"])

    def _undo(self) -> None:
        paths = self.log.undo()
        found = enumerate(self.shown["paths"], start=1)
        again = [place for place, shown in found if not set(shown).isdisjoint(paths)]
        if again and not self.several.value:
            self.place.value = again[0]
        self._draw(f"Undone: {', '.join(paths)}" if paths else "There is nothing to undo.")

    def _draw(self, message: str = "") -> None:
        if self.shown.empty:
            self.heading.value = self.nothing
            return
        old, first, count = self.cards.children, self.place.value, len(self.shown)
        if self.several.value:
            last = first + len(self.page) - 1
            self.heading.value = f"<b>{first} to {last} of {count}</b>: choose some, then decide"
            self.cards.children = self._overview()
        else:
            item = self.page.iloc[0]
            detail = f": {escape(item['detail'])}" if item["detail"] else ""
            self.heading.value = f"<b>{first} of {count} · {escape(item['issue'])}</b>{detail}"
            self.cards.children = [self._card(path, item["issue"]) for path in item["paths"]]
        for card in old:
            _close(card)
        known = self.log.decided()
        decided = sum(not known.isdisjoint(paths) for paths in self.shown["paths"])
        self.status.value = (
            f"{decided} of {count} decided, in <code>{escape(str(self.log.file))}</code>"
            f"<br>{escape(message)}"
        )

    def _card(self, path: str, reason: str) -> ipywidgets.VBox:
        def decide(decision: str, value: str = "") -> None:
            self._decide([path], decision, value, reason)

        decisions = self.log[path]
        buttons = [
            make_button("Keep", lambda: decide("keep"), "check"),
            make_button("Exclude", lambda: decide("exclude"), "times"),
        ]
        menus = []
        for name, column, choice in _MENUS:
            options, chosen = self.options[column], self.images.at[path, column]
            if decisions.get(choice) in options:
                chosen = decisions[choice]
            menu = ipywidgets.Dropdown(options=options, value=chosen, description=name)
            menu.observe(lambda change, choice=choice: decide(choice, change["new"]), names="value")
            menus.append(menu)
        parts = [
            _image(self.root / path, _SIDE),
            ipywidgets.HTML(f"<code>{escape(path)}</code><br>{_in_words(decisions)}"),
            ipywidgets.HBox(buttons),
            *menus,
        ]
        return ipywidgets.VBox(parts, layout={"margin": "0 16px 0 0"})

    def _overview(self) -> list[ipywidgets.Widget]:
        """Small images with a box each, and what can be done with those that are chosen."""
        boxes: dict[str, ipywidgets.Checkbox] = {}
        cards = []
        for path in dict.fromkeys(paths[0] for paths in self.page["paths"]):
            boxes[path] = ipywidgets.Checkbox(
                description=shorten(Path(path).name, 16), indent=False, layout={"width": "150px"}
            )
            text = f"<small title='{escape(path)}'>{_in_words(self.log[path])}</small>"
            parts = [_image(self.root / path, _SMALL_SIDE), boxes[path], ipywidgets.HTML(text)]
            cards.append(ipywidgets.VBox(parts, layout={"width": "160px"}))

        def choose_all() -> None:
            value = not all(box.value for box in boxes.values())
            for box in boxes.values():
                box.value = value

        issues = set(self.page["issue"])
        reason = issues.pop() if len(issues) == 1 else "several at once"

        def decide(decision: str) -> None:
            chosen = [path for path, box in boxes.items() if box.value]
            if chosen:
                self._decide(chosen, decision, reason=reason)
            else:
                self._draw("Nothing is chosen.")

        buttons = [
            make_button("Choose all", choose_all, "check-square-o"),
            make_button("Keep chosen", lambda: decide("keep"), "check"),
            make_button("Exclude chosen", lambda: decide("exclude"), "times"),
        ]
        for button in buttons:
            button.layout.width = "150px"
        return [ipywidgets.HBox(buttons, layout={"width": "100%"}), *cards]


def _in_words(decisions: dict[str, str]) -> str:
    words = [f"{decision} {value}".strip() for decision, value in decisions.items()]
    return f"decision: <b>{escape(', '.join(words) or 'undecided')}</b>"


def _image(path: Path, side: int) -> ipywidgets.Widget:
    try:
        image = ipywidgets.Image(value=jpeg_thumbnail(path, (2 * side, side)), format="jpeg")
    except ImageError as error:
        return ipywidgets.HTML(f"<i>cannot be shown: {escape(error.reason)}</i>")
    # A box would stretch it to its own width.
    image.layout = {"align_self": "flex-start", "max_width": "100%", "object_fit": "contain"}
    return image


def _close(widget: ipywidgets.Widget) -> None:
    """Free a widget and all below it, in Python and in the browser."""
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()
