"""Drop photographs on a button and see what the model says of them."""

from collections.abc import Iterator
from html import escape
from io import BytesIO

import ipywidgets

from resnet_ft.data.images import open_image
from resnet_ft.errors import ImageError
from resnet_ft.inference.predictor import Predictor
from resnet_ft.visualize.plots import plot_prediction
from resnet_ft.widgets.picture import picture

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


def upload_and_predict(predictor: Predictor, *, top_k: int = 5) -> ipywidgets.VBox:
    """A widget that predicts each image that is uploaded; works with ipywidgets 7 and 8."""
    upload = ipywidgets.FileUpload(
        accept="image/*",
        multiple=True,
        description="Drop photographs here, or choose them",
        layout={"width": "100%", "height": "72px"},
    )
    accept_drops(upload)
    results = ipywidgets.VBox()

    def predict(_) -> None:
        results.children = [_result(predictor, *file, top_k) for file in _files(upload.value)]

    upload.observe(predict, names="value")
    return ipywidgets.VBox([upload, results])


def _files(value: dict | tuple) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file: the value is a dict in ipywidgets 7 and a tuple in 8."""
    if isinstance(value, dict):
        for name, file in value.items():
            yield name, bytes(file["content"])
    else:
        for file in value:
            yield file["name"], bytes(file["content"])


def _result(predictor: Predictor, name: str, content: bytes, top_k: int) -> ipywidgets.Widget:
    try:
        image = open_image(BytesIO(content))
    except ImageError as error:
        return ipywidgets.HTML(f"<b>{escape(name)}</b> cannot be read: {escape(error.reason)}")
    shown = picture(plot_prediction(image, predictor.predict(image, top_k)))
    return ipywidgets.VBox([ipywidgets.HTML(f"<b>{escape(name)}</b>"), shown])
