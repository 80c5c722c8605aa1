"""Buttons, and keys that press them while the pointer is over their widget or it has the focus."""

from collections.abc import Callable

import ipywidgets
from IPython.display import Javascript, display

_LISTENS = "resnet-ft-keys"  # the class of a widget whose buttons have keys

# On the window, so that it comes before the keyboard shortcuts of the notebook itself.
_SCRIPT = """
if (!window.resnetFtKeys) {
  window.resnetFtKeys = true;
  const fields = "input:not([type=checkbox]), textarea, select, [contenteditable=true]";
  window.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const focus = document.activeElement;
    if (focus && focus.closest(fields)) return;
    const widget = document.querySelector(".resnet-ft-keys:hover")
      || (focus && focus.closest(".resnet-ft-keys"));
    const name = `.resnet-ft-key-${event.key.toLowerCase()}`;
    const button = widget && /^[a-z0-9]$/i.test(event.key) && widget.querySelector(name);
    if (!button) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    button.click();
  }, true);
}
"""


def make_button(label: str, action: Callable[[], None], icon: str = "") -> ipywidgets.Button:
    """A button that does something when it is clicked."""
    button = ipywidgets.Button(description=label, icon=icon, layout={"width": "100px"})
    button.on_click(lambda _: action())
    return button


def listen(widget: ipywidgets.Widget) -> None:
    """Let the keys of the buttons in this widget press them, in a notebook that runs JavaScript.

    Nothing happens while somebody types in a field.
    """
    widget.add_class(_LISTENS)
    display(Javascript(_SCRIPT))


def with_key(button: ipywidgets.Button, key: str) -> ipywidgets.Button:
    """Give a button a key: a letter or a digit."""
    button.add_class(f"resnet-ft-key-{key}")
    button.set_trait("tooltip", f"key {key}")
    return button
