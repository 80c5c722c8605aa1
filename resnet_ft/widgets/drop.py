"""A place to drop files on: ipywidgets' FileUpload opens a dialog and knows nothing else."""

import ipywidgets

_CLASS = "resnet-ft-drop"

# The button's file input hangs in no document, and pressing the button is the only way to it. So a
# drop presses the button, and hands the files over where that would open the dialog.
_SCRIPT = """
if (!window.resnetFtDrop) {
  window.resnetFtDrop = true;
  const place = (event) => event.target.closest && event.target.closest(".resnet-ft-drop");
  document.addEventListener("dragover", (event) => {
    if (place(event)) event.preventDefault();
  }, true);
  document.addEventListener("drop", (event) => {
    const button = place(event);
    if (!button) return;
    event.preventDefault();
    event.stopPropagation();
    const openDialog = HTMLInputElement.prototype.click;
    HTMLInputElement.prototype.click = function () {
      this.files = event.dataTransfer.files;
      this.dispatchEvent(new Event("change"));
    };
    try { button.click(); } finally { HTMLInputElement.prototype.click = openDialog; }
  }, true);
}
"""


def accept_drops(upload: ipywidgets.FileUpload) -> None:
    """Let files be dropped on an upload button, in notebooks that run JavaScript."""
    from IPython.display import Javascript, display

    upload.add_class(_CLASS)
    display(Javascript(_SCRIPT))
