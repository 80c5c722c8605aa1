"""Pictures of a notebook's widgets, as they stood in its kernel, for pages without a kernel.

A widget needs JavaScript from the web once its kernel has ended. What it showed is in the notebook,
in the state that the kernel left there: here it becomes plain HTML.
"""

from collections.abc import Callable
from html import escape
from typing import Any

from nbformat import NotebookNode

_VIEW = "application/vnd.jupyter.widget-view+json"
_STATES = "application/vnd.jupyter.widget-state+json"
_ROW = "display: flex; flex-flow: row wrap; gap: 6px; align-items: flex-start"
_COLUMN = "display: flex; flex-flow: column; gap: 6px; align-items: flex-start"


def draw_widgets(notebook: NotebookNode) -> dict[str, str]:
    """Put HTML in the place of each widget; returns it by the source of the cell."""
    models = notebook.metadata.pop("widgets", {}).get(_STATES, {}).get("state", {})
    pictures = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if _VIEW in data and (html := _drawn(data.pop(_VIEW)["model_id"], models)):
                data["text/html"] = pictures[cell.source] = f"<div>{html}</div>"
    return pictures


def _drawn(reference: str, models: dict[str, Any]) -> str:
    """A widget and all below it; nothing for one that has no look, such as a layout."""
    model = models.get(reference.removeprefix("IPY_MODEL_"), {})
    draw = _KINDS.get(model.get("model_name", ""))
    return draw(model, models) if draw else ""


def _box(style: str) -> Callable[[dict, dict], str]:
    def draw(model: dict, models: dict) -> str:
        children = "".join(_drawn(child, models) for child in model["state"]["children"])
        return f'<div style="{style}">{children}</div>'

    return draw


def _image(model: dict, _: dict) -> str:
    kind = model["state"]["format"]
    data = [buffer["data"] for buffer in model.get("buffers", []) if buffer["path"] == ["value"]]
    source = f"data:image/{kind};base64,{''.join(data[0].split())}" if data else ""
    return f'<img src="{source}" alt="" style="max-width: 100%">' if data else ""


def _button(model: dict, _: dict) -> str:
    return f"<button disabled>{escape(model['state']['description'])}</button>"


def _choice(model: dict, _: dict) -> str:
    """A menu, or buttons of which one is down, with what is chosen."""
    state = model["state"]
    labels, index = state["_options_labels"], state["index"]
    name = escape(state["description"])
    if model["model_name"] == "ToggleButtonsModel":
        buttons = (
            f"<button disabled>{'● ' if i == index else ''}{escape(label)}</button>"
            for i, label in enumerate(labels)
        )
        return f"<div>{name} {' '.join(buttons)}</div>"
    chosen = escape(labels[index]) if index is not None else ""
    return f"<label>{name} <select disabled><option>{chosen}</option></select></label>"


def _number(model: dict, _: dict) -> str:
    state = model["state"]
    field = f'<input disabled size="4" value="{escape(str(state["value"]))}">'
    return f"<label>{escape(state['description'])} {field}</label>"


def _html(model: dict, _: dict) -> str:
    return f"<div>{model['state']['value']}</div>"


_KINDS: dict[str, Callable[[dict, dict], str]] = {
    "VBoxModel": _box(_COLUMN),
    "HBoxModel": _box(_ROW),
    "ImageModel": _image,
    "HTMLModel": _html,
    "ButtonModel": _button,
    "ToggleButtonModel": _button,
    "FileUploadModel": _button,
    "DropdownModel": _choice,
    "ToggleButtonsModel": _choice,
    "BoundedIntTextModel": _number,
}
