"""A page that says what a photograph shows: `python examples/gradio_page.py runs/first`.

It needs Gradio: `pip install "resnet_ft[examples]"`. The same file is a Space of Hugging Face:
choose Gradio there, and put into its folder this file as `app.py`, the run's `best.pt` as
`run/best.pt`, and a `requirements.txt` with the line
`resnet_ft[timm] @ git+https://github.com/OWNER/resnet_ft`.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio asks for it when it is imported

import gradio

from resnet_ft import ImageError, Predictor

MOST_CLASSES = 5
NOTES = {
    "unsure": "The model is unsure: do not rely on this answer.",
    "unfamiliar": "The photograph is unlike those that the model has learned from.",
}


def page(predictor: Predictor) -> gradio.Interface:
    """One photograph, from a file, the camera or the clipboard; bars, and what to beware of."""

    def predict(path: str | None) -> str:
        if path is None:
            raise gradio.Error("Choose a photograph first.")
        try:
            prediction = predictor.predict(path, MOST_CLASSES)
        except ImageError as error:
            raise gradio.Error(error.reason) from None
        notes = [f"<p>{note}</p>" for name, note in NOTES.items() if getattr(prediction, name)]
        # The HTML of notebooks, in which names are text; the photograph stands beside it already.
        return "".join([replace(prediction, picture=None)._repr_html_(), *notes])

    # The file as it is: converted, it would lose its camera's orientation or some of its pixels.
    photograph = gradio.Image(type="filepath", image_mode=None, label="Photograph", height=360)
    return gradio.Interface(
        predict,
        photograph,
        gradio.HTML(container=True, padding=True, min_height=120),
        title="What does this photograph show?",
        description=f"The model knows {len(predictor.classes)} classes and chooses among them.",
        flagging_mode="never",
        analytics_enabled=False,
    )


def main() -> None:
    beside = Path(__file__).with_name("run")
    predictor = Predictor.load(sys.argv[1] if len(sys.argv) > 1 else beside)
    local = ["system-ui", "sans-serif"]  # Gradio's own fonts come from the web
    theme = gradio.themes.Default(font=local, font_mono=["ui-monospace", "monospace"])
    page(predictor).launch(theme=theme, ssr_mode=False, max_file_size="20mb")


if __name__ == "__main__":
    main()
