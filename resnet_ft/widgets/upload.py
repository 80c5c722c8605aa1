"""Drop images on a button and see what the model predicts."""

from collections.abc import Iterator
from html import escape

import ipywidgets
from IPython.display import Javascript, display

from resnet_ft.errors import ImageError
from resnet_ft.inference.predictor import Predictor

# The button's file input is in no document, and only a click on the button reaches it. So a drop
# clicks the button, and hands over the files where that would open the dialog.
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


def upload_and_predict(predictor: Predictor, *, top_k: int = 5) -> ipywidgets.VBox:
    """A widget that predicts each image that is dropped or chosen; works with ipywidgets 7 and 8.

    Dropping needs a notebook that runs JavaScript.
    """
    upload = ipywidgets.FileUpload(
        accept="image/*",
        multiple=True,
        description="Drop images here, or choose them",
        layout={"width": "100%", "height": "72px"},
    )
    upload.add_class("resnet-ft-drop")
    display(Javascript(_SCRIPT))
    results = ipywidgets.VBox()

    def predict(change: dict) -> None:
        if files := [*_files(change["new"])]:  # none where it was cleared
            results.children = [_result(predictor, *file, top_k) for file in files]
            _clear(upload)

    upload.observe(predict, names="value")
    return ipywidgets.VBox([upload, results])


def _files(value: dict | tuple) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file: the widget has a dict in ipywidgets 7 and a tuple in 8."""
    files = value.items() if isinstance(value, dict) else [(file["name"], file) for file in value]
    for name, file in files:
        yield name, bytes(file["content"])


def _clear(upload: ipywidgets.FileUpload) -> None:
    """Forget the files, so that the same ones can come again, and the button counts none."""
    if hasattr(upload, "_counter"):  # ipywidgets 7
        with upload.hold_sync():
            upload.set_trait("metadata", [])
            upload.set_trait("data", [])
            upload._counter = 0  # which makes the value that of no files
    else:
        upload.value = ()


def _result(predictor: Predictor, name: str, content: bytes, top_k: int) -> ipywidgets.Widget:
    try:
        shown = predictor.predict(content, top_k)._repr_html_()
    except ImageError as error:
        return ipywidgets.HTML(f"<b>{escape(name)}</b> cannot be read: {escape(error.reason)}")
    return ipywidgets.HTML(f"<b>{escape(name)}</b>{shown}")
