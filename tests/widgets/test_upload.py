"""The upload button and its answers, driven as a browser would, and what is kept of them."""

from datetime import UTC, datetime

import ipywidgets
import pytest
from conftest import write_image
from torch import nn

from resnet_ft import (
    ParameterError,
    Prediction,
    Predictor,
    apply_decisions,
    eval_transform,
    index_dataset,
    judge_predictions,
    read_decisions,
    upload_and_predict,
)
from resnet_ft.widgets.feedback import Feedback
from resnet_ft.widgets.upload import _files


class Colour(nn.Module):
    def forward(self, images):
        return 5 * images.mean(dim=(2, 3))


@pytest.fixture
def predictor():
    return Predictor(Colour(), ["red", "green", "blue"], eval_transform(16))


def test_uploads_are_understood_in_both_versions_of_ipywidgets():
    version_7 = {"a.png": {"metadata": {"name": "a.png"}, "content": b"one"}}
    version_8 = ({"name": "a.png", "content": memoryview(b"one")},)
    assert list(_files(version_7)) == list(_files(version_8)) == [("a.png", b"one")]


def send(upload: ipywidgets.FileUpload, name: str, content: bytes) -> None:
    """Do what a browser does when a file is chosen, in the installed version of ipywidgets."""
    if ipywidgets.__version__.startswith("7."):
        with upload.hold_trait_notifications():
            upload.metadata, upload.data = [{"name": name}], [content]
            upload._counter += 1
    else:
        file = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
        upload.value = ({**file, "last_modified": datetime(2026, 1, 1, tzinfo=UTC)},)


def test_what_is_dropped_is_predicted(predictor, tmp_path):
    upload, _, results = upload_and_predict(predictor).children
    content = write_image(tmp_path / "a.png", colour=(20, 20, 220)).read_bytes()
    send(upload, "a.png", content)
    shown = results.children[0].children[0].value
    assert "<b>a.png</b>" in shown and "data:image/jpeg;base64," in shown
    assert shown.index("blue") < shown.index("green")


def test_the_same_file_can_be_uploaded_again(predictor, tmp_path):
    upload, _, results = upload_and_predict(predictor).children
    content = write_image(tmp_path / "a.png").read_bytes()
    send(upload, "a.png", content)
    assert not upload.value  # cleared, or the browser's next value would be no change
    (first,) = results.children
    send(upload, "a.png", content)
    (second,) = results.children
    assert second is not first


def test_files_can_be_dropped_on_the_upload_button_and_come_from_a_camera(predictor, capsys):
    upload, camera, _ = upload_and_predict(predictor).children
    assert "resnet-ft-drop" in upload._dom_classes  # what the script looks for
    assert "resnet-ft-camera" in camera._dom_classes
    assert "Javascript object" in capsys.readouterr().out  # display() outside of a notebook


def test_an_upload_that_cannot_be_read_is_named(predictor):
    upload, _, results = upload_and_predict(predictor).children
    send(upload, "<b>.jpg", b"no image")
    assert "&lt;b&gt;.jpg" in results.children[0].value
    assert "not an image" in results.children[0].value


def judging(result):
    """The button and the menu of an answer, and what the widget says."""
    return result.children[1].children


def test_what_is_judged_is_kept_with_its_class(predictor, tmp_path):
    folder = tmp_path / "feedback"
    upload, _, results = upload_and_predict(predictor, feedback=folder).children
    kept = []
    for colour, true in (((20, 20, 220), "blue"), ((220, 20, 20), "green")):
        content = write_image(tmp_path / "a.png", colour=colour).read_bytes()
        send(upload, "C:\\photos\\a.png", content)
        right, wrong, said = judging(results.children[0])
        if true == "blue":
            right.click()
        else:
            assert [value for _, value in wrong.options] == [None, "green", "blue"]
            wrong.value = true
        (file,) = folder.glob(f"{true}/*.png")
        assert file.read_bytes() == content and file.name in said.value
        kept.append(f"{true}/{file.name}")
    decisions = read_decisions(folder / "feedback.csv")
    assert decisions["path"].tolist() == kept
    assert decisions["reason"].str.match(r"predicted (blue|red) \(>\d").all()


def test_who_changes_their_mind_changes_the_decision_and_no_file(predictor, tmp_path):
    folder, shades = tmp_path / "feedback", [(20, 20, 220 - i) for i in range(12)]
    shades += [(220 - i, 20, 20) for i in range(6)]
    photos = [write_image(tmp_path / f"{i}.png", colour=colour) for i, colour in enumerate(shades)]
    answers = judge_predictions(predictor, photos, folder).children
    for answer in answers:
        judging(answer)[0].click()

    def reds():
        index = apply_decisions(index_dataset(folder), folder / "feedback.csv")
        return (index.labels["class_name"] == "red").sum()

    assert reds() == 6
    judging(answers[0])[1].value = "red"
    assert reds() == 7
    assert len([*folder.glob("blue/*")]) == 12
    judging(answers[0])[0].click()
    assert reds() == 6


def test_feedback_replaces_no_other_photograph_of_the_same_name(tmp_path):
    kept, found = Feedback(tmp_path, ["blue", "red"]), Prediction([("blue", 0.9)])
    contents = [b"one", b"other"]
    files = {kept.keep("photo", content, "blue", found) for content in 2 * contents}
    assert {file.read_bytes() for file in files} == {*contents} and len(files) == 2
    assert {file.suffix for file in files} == {".jpg"}


def test_a_class_that_leaves_the_folder_is_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"'\.\./red' cannot be a folder"):
        Feedback(tmp_path, ["../red", "blue"])


def test_a_file_that_cannot_be_read_has_no_buttons(predictor, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    (result,) = judge_predictions(predictor, [tmp_path / "a.jpg"], tmp_path / "f").children
    assert isinstance(result, ipywidgets.HTML) and "cannot be read" in result.value
