"""Drop images on a button, or photograph something, and see what the model predicts."""

from collections.abc import Iterator
from pathlib import Path

import ipywidgets
from IPython.display import Javascript, display

from resnet_ft.inference.predictor import Predictor
from resnet_ft.widgets.feedback import Feedback, predicted

# The button's file input is in no document, and only a click on the button reaches it. So a drop
# clicks the button, and hands over the files where that would open the dialog. So does a camera.
_SCRIPT = """
if (!window.resnetFtDrop) {
  window.resnetFtDrop = true;
  const near = (event, place) => event.target.closest && event.target.closest(place);
  const give = (button, files) => {
    const openDialog = HTMLInputElement.prototype.click;
    HTMLInputElement.prototype.click = function () {
      this.files = files;
      this.dispatchEvent(new Event("change"));
    };
    try { button.click(); } finally { HTMLInputElement.prototype.click = openDialog; }
  };
  document.addEventListener("dragover", (event) => {
    if (near(event, ".resnet-ft-drop")) event.preventDefault();
  }, true);
  document.addEventListener("drop", (event) => {
    const button = near(event, ".resnet-ft-drop");
    if (!button) return;
    event.preventDefault();
    event.stopPropagation();
    give(button, event.dataTransfer.files);
  }, true);
  document.addEventListener("click", async (event) => {
    const camera = near(event, ".resnet-ft-camera");
    if (!camera) return;
    const [words, video] = [camera.textContent, camera.resnetFtVideo];
    if (video) {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext("2d").drawImage(video, 0, 0);
      video.srcObject.getTracks().forEach((track) => track.stop());
      video.remove();
      camera.resnetFtVideo = null;
      camera.textContent = camera.dataset.words;
      const photo = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
      const files = new DataTransfer();
      files.items.add(new File([photo], `camera-${Date.now()}.jpg`, { type: "image/jpeg" }));
      give(camera.parentElement.querySelector(".resnet-ft-drop"), files.files);
      return;
    }
    try {
      const video = document.createElement("video");
      const wanted = { video: { facingMode: "environment" } };
      video.srcObject = await navigator.mediaDevices.getUserMedia(wanted);
      video.style.maxWidth = "100%";
      video.muted = video.playsInline = true;
      camera.after(video);
      await video.play();
      camera.dataset.words = words;
      camera.textContent = "Take the photograph";
      camera.resnetFtVideo = video;
    } catch (error) {
      camera.textContent = "No camera here: " + (error.message || error);
    }
  });
}
"""


def upload_and_predict(
    predictor: Predictor, *, top_k: int = 5, feedback: str | Path | None = None
) -> ipywidgets.VBox:
    """A widget that predicts each image that is dropped, chosen, or taken with the camera.

    Works with ipywidgets 7 and 8; dropping and the camera need a notebook that runs JavaScript, and
    the camera one that is on this machine or comes over https. With `feedback`, a folder, each
    answer has the buttons of `judge_predictions`.
    """
    upload = ipywidgets.FileUpload(
        accept="image/*",
        multiple=True,
        description="Drop images here, or choose them",
        layout={"width": "100%", "height": "72px"},
    )
    upload.add_class("resnet-ft-drop")
    beside = {"width": "auto", "align_self": "flex-start"}
    camera = ipywidgets.Button(description="Camera", layout=beside)
    camera.add_class("resnet-ft-camera")
    display(Javascript(_SCRIPT))
    results = ipywidgets.VBox()
    judged = None if feedback is None else Feedback(feedback, predictor.classes)

    def predict(change: dict) -> None:
        if files := [*_files(change["new"])]:  # none where it was cleared
            results.children = [predicted(predictor, *file, judged, top_k) for file in files]
            _clear(upload)

    upload.observe(predict, names="value")
    return ipywidgets.VBox([upload, camera, results])


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
