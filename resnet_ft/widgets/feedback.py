"""Right or wrong? What a person says of predictions is kept, as photographs with labels."""

from collections.abc import Sequence
from hashlib import sha256
from html import escape
from pathlib import Path

import ipywidgets

from resnet_ft.data.decisions import DecisionLog
from resnet_ft.data.images import IMAGE_EXTENSIONS
from resnet_ft.errors import ImageError, ParameterError
from resnet_ft.files import atomic_write, user_path
from resnet_ft.inference.prediction import Prediction
from resnet_ft.inference.predictor import Predictor
from resnet_ft.notebook import percent
from resnet_ft.widgets.buttons import make_button


def judge_predictions(
    predictor: Predictor, images: Sequence[str | Path], feedback: str | Path, *, top_k: int = 3
) -> ipywidgets.VBox:
    """A widget that predicts these files, with buttons to say which answers are right.

    A judged photograph is copied to `feedback`/<its class>/, and feedback.csv in that folder gets a
    row with the prediction. The folder is a data set, to train on by itself or beside the Train
    folder that it is merged with, and `apply_decisions` takes the file: a class that somebody
    corrects later counts. Works with ipywidgets 7 and 8.
    """
    judged = Feedback(feedback, predictor.classes)
    files = [user_path(image) for image in images]
    return ipywidgets.VBox(
        [predicted(predictor, path.name, path.read_bytes(), judged, top_k) for path in files]
    )


class Feedback:
    """Photographs that a person judged: in a folder by class, with a row each in feedback.csv."""

    def __init__(self, folder: str | Path, classes: Sequence[str]):
        self.folder, self.classes = user_path(folder), list(classes)
        self.log = DecisionLog(self.folder / "feedback.csv")
        for name in self.classes:
            if Path(name).name != name:
                raise ParameterError(f"Class {name!r} cannot be a folder, to keep feedback in.")

    def keep(self, name: str, content: bytes, class_name: str, found: Prediction) -> Path:
        """Keep a photograph as one of a class; returns its file, which never replaces another.

        One that was kept before stays where it is, and gets a decision about its class.
        """
        place = Path(name.replace("\\", "/"))
        suffix = place.suffix if place.suffix.lower() in IMAGE_EXTENSIONS else ".jpg"
        unique = f"{place.stem}-{sha256(content).hexdigest()[:8]}{suffix}"
        known = [file for one in self.classes if (file := self.folder / one / unique).exists()]
        file = known[0] if known else self.folder / class_name / unique
        if not known:
            with atomic_write(file) as temporary:
                temporary.write_bytes(content)
        decision = ("keep",) if file.parent.name == class_name else ("relabel", class_name)
        said = f"predicted {found.class_name} ({percent(found.confidence)})"
        self.log.decide(f"{file.parent.name}/{unique}", *decision, reason=said)
        return file

    def buttons(self, name: str, content: bytes, found: Prediction) -> ipywidgets.Widget:
        """Right, or else which class it is; the answer is kept at once."""
        others = [(one, one) for one in self.classes if one != found.class_name]
        right = make_button("Right", lambda: say(found.class_name), "check")
        right.layout.width = "auto"
        wrong = ipywidgets.Dropdown(
            options=[("Wrong: it is ...", None), *others], layout={"width": "auto"}
        )
        said = ipywidgets.HTML()

        def say(class_name: str | None) -> None:
            if class_name is None:
                return
            file = self.keep(name, content, class_name, found)
            said.value = f"Kept as <b>{escape(class_name)}</b>: {escape(file.name)}"

        wrong.observe(lambda change: say(change["new"]), "value")
        return ipywidgets.HBox([right, wrong, said], layout={"flex_flow": "wrap"})


def predicted(
    predictor: Predictor, name: str, content: bytes, judged: Feedback | None, top_k: int
) -> ipywidgets.Widget:
    """A photograph with its prediction, and buttons to judge it; or why it cannot be read."""
    try:
        found = predictor.predict(content, top_k)
    except ImageError as error:
        return ipywidgets.HTML(f"<b>{escape(name)}</b> cannot be read: {escape(error.reason)}")
    shown = ipywidgets.HTML(f"<b>{escape(name)}</b>{found._repr_html_()}")
    buttons = [judged.buttons(name, content, found)] if judged else []
    return ipywidgets.VBox([shown, *buttons])
