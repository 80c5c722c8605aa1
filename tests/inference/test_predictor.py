import json
import subprocess
import sys
import warnings
from importlib.util import find_spec

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, write_image
from PIL import Image
from torch import nn

from resnet_ft import (
    Calibration,
    CheckpointError,
    DatasetError,
    DriveError,
    ImageError,
    ParameterError,
    Predictor,
    Preprocessing,
    build_model,
    eval_transform,
    evaluate,
    make_dataloaders,
    save_checkpoint,
)

PREPROCESSING = {"image_size": 16, "mean": [0.0] * 3, "std": [1.0] * 3}


def approx(top):
    return [(name, pytest.approx(share, abs=1e-5)) for name, share in top]


@pytest.fixture
def predictor():
    """Distinguishes red, green and blue by their share of the image."""

    class Colour(nn.Module):
        def forward(self, images):
            return 5 * images.mean(dim=(2, 3))

    return Predictor(
        Colour(), ["red", "green", "blue"], eval_transform(Preprocessing(**PREPROCESSING))
    )


def test_one_image_gives_its_most_probable_classes_in_order(predictor, tmp_path):
    path = write_image(tmp_path / "a.png", colour=(20, 60, 220))
    prediction = predictor.predict(path)
    assert [name for name, _ in prediction.top] == ["blue", "green", "red"]
    shares = [share for _, share in prediction.top]
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
    assert (prediction.class_name, prediction.confidence) == prediction.top[0]
    assert predictor.predict(path, top_k=1).top == prediction.top[:1]


def test_paths_and_open_images_are_the_same(predictor, tmp_path):
    path = write_image(tmp_path / "a.png")
    assert predictor.predict(str(path)) == predictor.predict(Image.open(path))


def test_an_open_image_is_turned_upright_too(predictor):
    seen = []
    predictor.transform = lambda image: seen.append(image.size) or torch.zeros(3, 4, 4)
    image = Image.new("RGBA", (6, 3))
    image.getexif()[274] = 6
    predictor.predict(image)
    assert seen == [(3, 6)]


def test_a_batch_is_the_same_as_one_by_one(predictor, tmp_path):
    paths = [write_image(tmp_path / f"{i}.png", colour=(90 * i, 90, 90)) for i in range(3)]
    for path, prediction in zip(paths, predictor.predict(paths), strict=True):
        assert prediction.top == approx(predictor.predict(path).top)
    assert predictor.predict(tuple(paths), top_k=1)[2].top == predictor.predict(paths)[2].top[:1]
    assert predictor.predict([]) == []


def test_a_folder_gives_a_row_per_image_and_lists_what_cannot_be_read(predictor, tmp_path):
    for i in range(5):
        write_image(tmp_path / "in" / "deep" / f"{i}.png", colour=(220, 20, 20))
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "in" / "notes.txt").touch()
    table = predictor.predict_folder(tmp_path / "in", tmp_path / "out.csv", batch_size=2)
    assert len(table) == 6
    broken = table[table["path"].str.endswith("broken.jpg")].iloc[0]
    assert "not an image" in broken["error"] and pd.isna(broken["predicted"])
    readable = table[table["error"].isna()]
    assert readable["predicted"].tolist() == ["red"] * 5
    saved = pd.read_csv(tmp_path / "out.csv")
    assert list(saved) == ["path", "predicted", "confidence", "error"]
    assert saved["confidence"].notna().sum() == 5


def test_a_folder_with_nothing_readable_is_refused_with_the_reason(predictor, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"No image in .* can be read: not an image"):
        predictor.predict_folder(tmp_path)


def test_wrong_files_and_folders_are_named(predictor, tmp_path):
    with pytest.raises(DatasetError, match="no images in"):
        predictor.predict_folder(tmp_path)
    with pytest.raises(ImageError, match=r"missing\.jpg"):
        predictor.predict(tmp_path / "missing.jpg")


def test_a_checkpoint_alone_predicts_as_evaluation_did(photos, tmp_path):
    torch.manual_seed(1)
    loaders = make_dataloaders(photos, image_size=32, num_workers=0)
    model = build_model("resnet18", 2, weights=None)
    dataset = loaders["val"].dataset
    path = save_checkpoint(
        tmp_path / "best.pt", model, classes=dataset.classes, preprocessing=dataset.preprocessing
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no complaint about random weights on loading
        predictor = Predictor.load(path)
    for row in evaluate(model, loaders["val"]).table.itertuples():
        answer = predictor.predict(row.path)
        assert answer.class_name == row.predicted
        assert answer.confidence == pytest.approx(row.confidence, abs=1e-5)


WITHOUT_LIBRARY = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import pandas as pd

sys.modules["resnet_ft"] = None  # to import it is an ImportError
run, images_dir = SimpleNamespace(best=sys.argv[1]), Path(sys.argv[2])
readable = pd.DataFrame({{"path": ["a.png"]}})
{cells}
print(json.dumps(probabilities.tolist()))
"""


def test_the_notebook_predicts_the_same_without_this_library(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "05_infer.ipynb", as_version=4)
    sources = [cell.source for cell in notebook.cells]
    (start,) = [i for i, text in enumerate(sources) if text.startswith("## Without this library")]
    end = next(i for i in range(start + 1, len(sources)) if sources[i].startswith("## "))
    cells = [cell.source for cell in notebook.cells[start:end] if cell.cell_type == "code"]
    image = write_image(tmp_path / "a.png", size=(90, 60))
    model = build_model("resnet18", 3, weights=None)
    path = save_checkpoint(
        tmp_path / "best.pt",
        model,
        classes=["a", "b", "c"],
        preprocessing={"image_size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    )
    code = WITHOUT_LIBRARY.format(cells="\n".join(cells))
    command = [sys.executable, "-c", code, str(path), str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = dict(Predictor.load(path).predict(image).top)
    found = json.loads(run.stdout.splitlines()[-1])
    assert found == pytest.approx([expected[name] for name in "abc"], abs=1e-5)


def test_a_custom_model_or_transform_has_to_be_handed_in(tmp_path):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    nameless = save_checkpoint(tmp_path / "nameless.pt", model)
    with pytest.raises(CheckpointError, match="no class names"):
        Predictor.load(nameless, model, transform=eval_transform(8))
    path = save_checkpoint(tmp_path / "own.pt", model, classes=["a", "b"])
    with pytest.raises(CheckpointError, match="transform="):
        Predictor.load(path, model)
    with pytest.raises(CheckpointError, match="model="):
        Predictor.load(path, transform=eval_transform(8))
    predictor = Predictor.load(path, model, transform=eval_transform(8))
    answer = predictor.predict(Image.new("RGB", (9, 9)))
    assert set(dict(answer.top)) == {"a", "b"}


def test_predictions_are_no_formulas_in_a_spreadsheet(tmp_path, small_network):
    write_image(tmp_path / "photos" / "a.png", (9, 9))
    predictor = Predictor(small_network, ["=1+1", "-b"], eval_transform(9))
    table = predictor.predict_folder(tmp_path / "photos", tmp_path / "p.csv", num_workers=0)
    written = (tmp_path / "p.csv").read_bytes()
    assert written.startswith(b"\xef\xbb\xbf") and b",'" in written
    assert table["predicted"][0] in ("=1+1", "-b")


def test_numbers_that_make_no_sense_are_refused_by_name(predictor, tmp_path):
    path = write_image(tmp_path / "a.png")
    for top_k in (-1, 0, "many"):
        with pytest.raises(ParameterError, match="top_k="):
            predictor.predict(path, top_k=top_k)
    for option in ("tta", "normalised"):
        with pytest.raises(ParameterError, match=f"{option}='perhaps'"):
            predictor.predict(path, **{option: "perhaps"})
    with pytest.raises(ParameterError, match="batch_size=0"):
        predictor.predict_folder(tmp_path, batch_size=0)
    with pytest.raises(ParameterError, match="num_workers=-1"):
        predictor.predict_folder(tmp_path, num_workers=-1)
    with pytest.raises(ParameterError, match="folder=None"):
        predictor.predict_folder(None)


def test_the_place_of_the_table_is_tried_before_anything_is_predicted(predictor, tmp_path):
    write_image(tmp_path / "in" / "a.png")
    predictor.transform = pytest.fail  # an image was prepared
    occupied = tmp_path / "file"
    occupied.touch()
    (tmp_path / "folder.csv").mkdir()
    for csv in (occupied / "out.csv", tmp_path / "folder.csv"):
        with pytest.raises(DriveError, match=f"{csv.name} cannot be written"):
            predictor.predict_folder(tmp_path / "in", csv)


def test_a_table_that_cannot_be_written_in_the_end_is_put_elsewhere(predictor, tmp_path):
    write_image(tmp_path / "in" / "a.png", colour=(220, 20, 20))
    csv, transform = tmp_path / "out" / "table.csv", predictor.transform

    def break_the_place(image):
        if csv.parent.is_dir():
            csv.parent.rmdir()
            csv.parent.touch()  # as if Drive had gone away
        return transform(image)

    predictor.transform = break_the_place
    with pytest.warns(UserWarning, match=r"table\.csv could not be written") as said:
        table = predictor.predict_folder(tmp_path / "in", csv)
    instead = str(said[0].message).split("The table is in ")[1].split(", on this machine")[0]
    assert pd.read_csv(instead)["predicted"].tolist() == table["predicted"].tolist() == ["red"]


def test_probabilities_that_are_not_numbers_are_an_error(photos):
    """Weights may be finite and yet so large that nothing comes out, as after a flipped bit."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    with torch.no_grad():
        model[1].weight.fill_(1e38)
    predictor = Predictor(model, ["blue", "red"], eval_transform(8))
    with pytest.raises(CheckpointError, match="not numbers"):
        predictor.predict(photos / "Val/red/0.png")


def test_a_list_of_files_is_predicted_like_a_folder(predictor, tmp_path):
    files = [write_image(tmp_path / f"{i}.png", colour=(250, 0, 0)) for i in range(3)]
    (tmp_path / "2.png").write_bytes(b"no image")
    table = predictor.predict_folder(files[1:], tmp_path / "table.csv", num_workers=0)
    assert table["path"].tolist() == [str(path) for path in files[1:]]
    assert table["predicted"].tolist()[0] == "red" and table["error"].notna().tolist() == [
        False,
        True,
    ]
    with pytest.raises(DatasetError, match="no images in this list of 0 files"):
        predictor.predict_folder([])
    with pytest.raises(ParameterError, match="or a list of files"):
        predictor.predict_folder([files[0], 3])


def calibration(**options):
    scores = {"log_loss": 0.0, "brier": 0.0, "ece": 0.0, "band": 0.0, "overconfidence": 0.0}
    given = {"temperature": 1.0, "weights": "", "images": 9, "before": scores, "after": scores}
    return Calibration(**given | options)


@pytest.fixture
def rooms(tmp_path):
    """A folder with reddish and greenish images, a grey one and one that cannot be read."""
    colours = [(220, 20, 20), (200, 90, 60), (20, 200, 20), (120, 118, 120)]
    for number, colour in enumerate(colours):
        write_image(tmp_path / "in" / f"{number}.png", colour=colour)
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    return tmp_path / "in"


def test_probabilities_are_divided_by_the_temperature(predictor, rooms):
    plain = pd.Series(dict(predictor.predict(rooms / "1.png").top))
    cooler = Predictor(
        predictor.model,
        predictor.classes,
        predictor.transform,
        calibration=calibration(temperature=2.0),
    )
    found = pd.Series(dict(cooler.predict(rooms / "1.png").top))
    expected = plain**0.5 / (plain**0.5).sum()  # softmax(z / 2) is proportional to sqrt(softmax(z))
    assert np.allclose(found, expected[found.index], atol=1e-6)
    table = cooler.predict_folder(rooms)
    assert list(table) == ["path", "predicted", "confidence", "error"]
    assert table["confidence"][1] == pytest.approx(found.iloc[0], abs=1e-6)


def test_answers_below_the_threshold_are_unsure(predictor, rooms, tmp_path):
    plain = predictor.predict_folder(rooms)
    limit = float(plain["confidence"][[1, 3]].mean())  # above the grey one's, below the others'
    assert plain["confidence"][3] < limit < plain["confidence"][:3].min()
    careful = Predictor(
        predictor.model,
        predictor.classes,
        predictor.transform,
        calibration=calibration(accuracy=0.9, threshold=limit),
    )
    table = careful.predict_folder(rooms, tmp_path / "out.csv", top_k=2)
    assert list(table)[-2:] == ["unsure", "error"]
    assert table["unsure"].tolist() == [False, False, False, True, pd.NA]
    for row in table[:4].itertuples():
        prediction = careful.predict(rooms / row.path)
        assert (prediction.unsure, prediction.unfamiliar) == (row.unsure, None)
    saved = pd.read_csv(tmp_path / "out.csv")
    assert saved["unsure"].dropna().astype(bool).tolist() == [False, False, False, True]
    again = careful.predict_folder(rooms, tmp_path / "out.csv", top_k=2)
    pd.testing.assert_frame_equal(again, table)
    if find_spec("pyarrow"):
        found = careful.predict_folder(rooms, tmp_path / "out.parquet", top_k=2)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet"), found)
    with pytest.raises(ParameterError, match=r"another unsure below"):
        predictor.predict_folder(rooms, tmp_path / "out.csv", top_k=2)


@pytest.mark.parametrize("threads", [1, 2])
def test_images_whose_features_are_unlike_those_of_training_are_unfamiliar(rooms, threads):
    torch.manual_seed(0)
    model = build_model("resnet18", 2, weights=None)
    transform = eval_transform(Preprocessing(**PREPROCESSING))
    images = torch.stack([transform(Image.open(rooms / f"{i}.png")) for i in range(4)])
    with torch.no_grad():
        model.eval()(images)
        body = nn.Sequential(*list(model.children())[:-1], nn.Flatten())
        features = nn.functional.normalize(body(images))
    strange = (1 - features @ features[0]) / 2  # to the first image, the mean of the only class
    limit = float(strange.sort().values[1:3].mean())
    known = {"means": features[:1].half(), "strangest": limit}
    passes = []
    model.avgpool.register_forward_hook(lambda *_: passes.append(1))
    wary = Predictor(model, ["a", "b"], transform, calibration=calibration(**known, threshold=0.0))
    expected = (strange > limit).tolist()
    assert sum(expected) == 2
    for number in range(4):
        prediction = wary.predict(rooms / f"{number}.png")
        assert (prediction.unsure, prediction.unfamiliar) == (False, expected[number])
    assert len(passes) == 4  # features and logits are of one pass
    torch.set_num_threads(threads)
    table = wary.predict_folder(rooms, batch_size=1, num_workers=0)
    assert list(table)[-3:] == ["unsure", "unfamiliar", "error"]
    assert table["unfamiliar"].tolist() == [*expected, pd.NA]
    plain = Predictor(model, ["a", "b"], transform).predict_folder(rooms, num_workers=0)
    assert np.allclose(table["confidence"], plain["confidence"], atol=1e-5, equal_nan=True)


def test_test_time_augmentation_is_the_mean_of_an_image_and_its_mirror_image(rooms):
    torch.manual_seed(0)
    model = build_model("resnet18", 2, weights=None)
    image = np.asarray(Image.open(rooms / "0.png"))[:, :40].copy()  # a square
    image[:, 20:] = (10, 200, 10)  # whose two halves differ
    found = [
        calibration(threshold=limit, strangest=0.4, means=torch.ones(1, 512).half())
        for limit in (0.0, 1.0)
    ]
    for known in found:
        predictor = Predictor(model, ["a", "b"], eval_transform(16), calibration=known)
        both = [dict(one.top)["a"] for one in predictor.predict([image, image[:, ::-1]])]
        assert abs(both[0] - both[1]) > 1e-4
        twice = predictor.predict(image, tta=True)
        assert dict(twice.top)["a"] == pytest.approx(np.mean(both), abs=1e-5)
        assert twice.unsure == bool(known.threshold) and twice.unfamiliar is not None
    Image.fromarray(image).save(rooms / "halves.png")
    table = predictor.predict_folder(rooms, rooms / "t.csv", tta=True, num_workers=0)
    row = table[table["path"] == "halves.png"].iloc[0]
    assert (row["predicted"], row["unsure"]) == (twice.class_name, True)
    assert row["confidence"] == pytest.approx(twice.confidence, abs=1e-5)
    with pytest.raises(ParameterError, match="another tta"):
        predictor.predict_folder(rooms, rooms / "t.csv", num_workers=0)


BEYOND_HALF = """
import torch
from PIL import Image
from torch import nn
from resnet_ft import Predictor, configure_engine, eval_transform

configure_engine(mixed_precision="bf16")
head = nn.Linear(3, 2)
nn.init.zeros_(head.weight)
head.bias.data = torch.tensor([1e6, 1e6 - 1])
head.bias.requires_grad_(False)
model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
print(Predictor(model, ["a", "b"], eval_transform(16)).predict(Image.new("RGB", (20, 20))))
"""


def test_outputs_beyond_half_precision_are_computed_in_full():
    run = [sys.executable, "-W", "ignore", "-c", BEYOND_HALF]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "a 73.1%, b 26.9%"  # 1 / (1 + 1 / e)
