"""A folder's table: written row by row, continued, refused, merged from several processes."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import folder as script
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import network, write_image
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from resnet_ft import (
    DatasetError,
    ParameterError,
    Predictor,
    build_model,
    eval_transform,
    save_checkpoint,
)
from resnet_ft.__main__ import main

CLASSES = ["red", "green", "blue"]


class Colour(nn.Module):
    """Distinguishes red, green and blue by their share of the image."""

    def forward(self, images):
        return 5 * images.mean(dim=(2, 3))


@pytest.fixture
def predictor():
    return Predictor(Colour(), CLASSES, eval_transform(8))


@pytest.fixture
def images(tmp_path):
    """Seven images, of which one is broken."""
    folder = tmp_path / "images"
    for i in range(6):
        write_image(folder / f"{i % 2}" / f"{i}.png", colour=np.eye(3)[i % 3] * 200)
    (folder / "0" / "3.jpg").write_bytes(b"no image")
    return folder


def many(folder: Path, count: int) -> Path:
    """A folder of links to a few tiny images."""
    folder.mkdir()
    for i in range(3):
        write_image(folder / f"{i:04d}.png", size=(9, 8), colour=np.eye(3)[i] * 220)
    for i in range(3, count):
        os.link(folder / f"{i % 3:04d}.png", folder / f"{i:04d}.png")
    return folder


_PEAK = """
import sys
from pathlib import Path
import torch
from resnet_ft import Predictor, eval_transform

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

predictor = Predictor(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
                      ["red", "green", "blue"], eval_transform(8))
predictor.predict_folder(sys.argv[2], num_workers=0)  # everything is imported
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
before = memory("VmRSS")
predictor.predict_folder(sys.argv[1], sys.argv[1] + ".csv", top_k=3, num_workers=0, batch_size=256)
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_memory_grows_by_the_rows_of_the_table_alone(tmp_path):
    few, peaks = many(tmp_path / "few", 6), []
    for count in (15_000, 45_000):
        folder = many(tmp_path / str(count), count)
        command = [sys.executable, "-c", _PEAK, str(folder), str(few)]
        peaks.append(
            int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        )
    assert peaks[1] - peaks[0] < 30_000 * 1000  # bytes of a row, while the table is read, too


def run_script(*arguments):
    command = [sys.executable, script.__file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout.split()[-1])


def torchrun(*arguments, check=True, **environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_paths_are_relative_to_the_folder(predictor, images):
    table = predictor.predict_folder(images)
    assert table["path"].tolist() == [
        *("0/0.png", "0/2.png", "0/3.jpg", "0/4.png", "1/1.png", "1/3.png", "1/5.png")
    ]
    listed = predictor.predict_folder([images / path for path in table["path"]])
    assert listed["path"].tolist() == [str(images / path) for path in table["path"]]
    assert listed.drop(columns="path").equals(table.drop(columns="path"))


def test_top_k_adds_columns_for_the_next_classes(predictor, images, tmp_path):
    table = predictor.predict_folder(images, tmp_path / "t.csv", top_k=5, batch_size=3)
    assert list(table) == [
        *("path", "predicted", "confidence", "class_2", "confidence_2"),
        *("class_3", "confidence_3", "error"),
    ]
    assert table.loc[2].drop(["path", "error"]).isna().all()
    for row in table.drop(index=2).itertuples():
        expected = predictor.predict(images / row.path)
        assert [row.predicted, row.class_2, row.class_3] == [name for name, _ in expected.top]
        found = [row.confidence, row.confidence_2, row.confidence_3]
        assert found == pytest.approx([share for _, share in expected.top], abs=1e-6)


@pytest.mark.processes
def test_workers_give_the_same_table(predictor, images):
    alone, with_workers = (
        predictor.predict_folder(images, num_workers=count, batch_size=2) for count in (0, 2)
    )
    pd.testing.assert_frame_equal(alone, with_workers)


@pytest.mark.parametrize(
    "transform",
    [
        v2.Compose([v2.Resize((8, 8)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
        v2.Compose([v2.PILToTensor(), v2.CenterCrop(8), v2.ToDtype(torch.float32)]),
        lambda image: np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1) / 255,
    ],
)
def test_any_transform_will_do(transform, images):
    predictor = Predictor(Colour(), CLASSES, transform)
    table = predictor.predict_folder(images, num_workers=0, batch_size=4)
    assert table["error"].notna().sum() == 1
    for row in table.dropna(subset="predicted").itertuples():
        best = predictor.predict(images / row.path)
        assert row.predicted == best.class_name
        assert row.confidence == pytest.approx(best.confidence, abs=1e-5)


def test_a_network_is_quicker_as_a_copy_and_stays_as_it_is(images):
    torch.manual_seed(0)
    model = build_model("resnet18", 3, weights=None)
    before = {name: (one.clone(), one.stride()) for name, one in model.state_dict().items()}
    predictor = Predictor(model, CLASSES, eval_transform(32))
    table = predictor.predict_folder(images, num_workers=0).dropna(subset="predicted")
    after = predictor.model.state_dict()
    assert predictor.model is model and after.keys() == before.keys()
    for name, (tensor, stride) in before.items():
        assert torch.equal(after[name], tensor) and after[name].stride() == stride
    for row in table.itertuples():
        best = predictor.predict(images / row.path)
        assert row.confidence == pytest.approx(best.confidence, abs=1e-5)


def test_a_quick_copy_is_made_once_for_the_same_weights(images):
    torch.manual_seed(0)
    model = build_model("resnet18", 3, weights=None)
    predictor = Predictor(model, CLASSES, eval_transform(32))
    first = predictor.predict_folder(images, num_workers=0)
    copied = predictor._network.quick[1]
    predictor.predict_folder(images, num_workers=0)
    assert predictor._network.quick[1] is copied
    with torch.no_grad():
        model.fc.bias[2] += 5
    later = predictor.predict_folder(images, num_workers=0).dropna(subset="predicted")
    assert set(later["predicted"]) == {CLASSES[2]} != set(first["predicted"].dropna())
    best = predictor.predict(images / later["path"].iloc[0])
    assert later["confidence"].iloc[0] == pytest.approx(best.confidence, abs=1e-5)


@pytest.mark.parametrize("threads", [2, 5])
def test_batches_that_are_computed_at_once_stay_in_order(threads, tmp_path):
    torch.manual_seed(0)
    model = build_model("resnet18", 3, weights=None)
    predictor = Predictor(model, CLASSES, eval_transform(32))
    folder = many(tmp_path / "images", 23)
    options = {"num_workers": 0, "batch_size": 2, "top_k": 3}
    one = predictor.predict_folder(folder, **options)
    torch.set_num_threads(threads)
    several = predictor.predict_folder(folder, **options)
    assert torch.get_num_threads() == threads
    pd.testing.assert_frame_equal(several, one, atol=1e-5)


class OnlyContiguous(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 3)

    def forward(self, images):
        return self.layer(images.view(len(images), -1))


class OtherWhenTraced(nn.Module):
    """Tracing it, outside of inference mode, sees other logits."""

    def __init__(self):
        super().__init__()
        self.sign = 1

    def forward(self, images):
        sign = 1 if torch.is_inference_mode_enabled() else -1
        return sign * 5 * images.mean(dim=(2, 3))


@pytest.mark.parametrize("network", [OnlyContiguous, OtherWhenTraced])
def test_a_network_that_cannot_be_copied_so_is_used_as_it_is(network, images):
    predictor = Predictor(network(), CLASSES, eval_transform(8))
    table = predictor.predict_folder(images, num_workers=0)
    for row in table.dropna(subset="predicted").itertuples():
        best = predictor.predict(images / row.path)
        assert row.predicted == best.class_name
        assert row.confidence == pytest.approx(best.confidence, abs=1e-6)


def test_the_same_call_reads_a_finished_table(predictor, images, tmp_path):
    first = predictor.predict_folder(images, tmp_path / "t.csv")
    written = (tmp_path / "t.csv").read_bytes()
    predictor.model.forward = pytest.fail  # an image was predicted
    again = predictor.predict_folder(images, tmp_path / "t.csv", batch_size=2)
    pd.testing.assert_frame_equal(again, first)
    assert (tmp_path / "t.csv").read_bytes() == written


@pytest.mark.parametrize("cut", [1, 30, 60, 120, 200, 300, 400])
def test_a_table_that_was_cut_anywhere_becomes_the_same_again(predictor, images, tmp_path, cut):
    csv = tmp_path / "t.csv"
    first = predictor.predict_folder(images, csv, batch_size=2, num_workers=0)
    whole = csv.read_bytes()
    assert len(whole) > 200
    csv.write_bytes(whole[:-cut])
    again = predictor.predict_folder(images, csv, batch_size=2, num_workers=0)
    pd.testing.assert_frame_equal(again, first)
    assert csv.read_bytes() == whole


@pytest.mark.slow
def test_a_killed_call_is_continued_where_it_was(tmp_path):
    folder = many(tmp_path / "images", 600)
    opened = run_script(folder, tmp_path / "whole.csv")
    assert opened == 600
    csv = tmp_path / "killed.csv"
    process = subprocess.Popen([sys.executable, script.__file__, folder, csv, "0.004"])
    while not csv.exists() or csv.read_bytes().count(b"\n") < 1 + 300:
        time.sleep(0.01)
    process.kill()
    process.wait()
    rows = csv.read_bytes().count(b"\n") - 1
    assert 300 <= rows < 600
    with csv.open("ab") as file:
        file.write(b'"half of a ro')
    assert run_script(folder, csv) == 600 - rows
    assert csv.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def changed_model():
    model = network()
    with torch.no_grad():
        model[6].bias[0] += 1e-3
    return model


OTHERS = {
    "model": {"model": changed_model},
    "classes": {"classes": ["a", "c"]},
    "transform": {"transform": eval_transform(10)},
}


@pytest.mark.parametrize("what", [*OTHERS, "top_k (1, now 2)", "number of files (7, now 8)"])
def test_a_table_of_something_else_is_refused_and_stays(what, images, tmp_path):
    torch.manual_seed(0)
    model, csv = network(), tmp_path / "t.csv"
    given = {"model": lambda: model, "classes": ["a", "b"], "transform": eval_transform(9)}
    Predictor(**{**given, "model": model}).predict_folder(images, csv, num_workers=0)
    before = csv.read_bytes()
    if what.startswith("number"):
        write_image(images / "new.png")
    options = {**given, **OTHERS.get(what, {})}
    torch.manual_seed(0)
    predictor = Predictor(options.pop("model")(), **options)
    top_k = 2 if what.startswith("top_k") else 1
    with pytest.raises(ParameterError) as refused:
        predictor.predict_folder(images, csv, top_k=top_k, num_workers=0)
    assert f"t.csv is of another {what}" in str(refused.value)
    assert "another name" in str(refused.value) and csv.read_bytes() == before
    table = predictor.predict_folder(images, csv, top_k=top_k, num_workers=0, overwrite=True)
    pd.testing.assert_frame_equal(
        table, predictor.predict_folder(images, csv, top_k=top_k, num_workers=0)
    )


def test_a_file_that_has_changed_makes_another_list_of_files(predictor, images, tmp_path):
    predictor.predict_folder(images, tmp_path / "t.csv", num_workers=0)
    write_image(images / "0" / "0.png", size=(99, 98))
    with pytest.raises(ParameterError, match="another list of files"):
        predictor.predict_folder(images, tmp_path / "t.csv", num_workers=0)


def test_a_table_of_another_program_is_neither_continued_nor_replaced(predictor, images, tmp_path):
    csv = tmp_path / "t.csv"
    csv.write_text("path,price\na.jpg,3\n")
    with pytest.raises(ParameterError, match=r"no t\.csv\.json beside it says of what"):
        predictor.predict_folder(images, csv)
    assert csv.read_text() == "path,price\na.jpg,3\n"
    csv.unlink()
    predictor.predict_folder(images, csv)
    for edited in (csv.read_text().replace(",", ";"), csv.read_text() + "a,b,,\n"):
        csv.write_text(edited)
        with pytest.raises(ParameterError, match=r"row . is not as it was written"):
            predictor.predict_folder(images, csv)
        assert csv.read_text() == edited
    (tmp_path / "t.csv.json").write_text("[")
    with pytest.raises(ParameterError, match=r"t\.csv\.json cannot be read .*overwrite=True"):
        predictor.predict_folder(images, csv)
    assert len(predictor.predict_folder(images, csv, overwrite=True)) == 7


NAMES = ["=1+1.png", "-a,b.png", 'say "x".png', "two\nlines.png", "a\rb.png", "'=x.png", "ü.png"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_what_people_call_their_files_and_classes_is_text(tmp_path):
    names = sorted([os.fsencode(name) for name in NAMES] + [b"\xff.png"])
    image = write_image(tmp_path / "image.png")
    folder = tmp_path / "images"
    folder.mkdir()
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(image.read_bytes())
    predictor = Predictor(Colour(), ["=red", "@green", "NA"], eval_transform(8))
    first = predictor.predict_folder(folder, tmp_path / "t.csv", batch_size=3, top_k=3)
    assert sorted(os.fsencode(path) for path in first["path"]) == names
    assert set(first.loc[0, ["predicted", "class_2", "class_3"]]) == {"=red", "@green", "NA"}
    written = (tmp_path / "t.csv").read_bytes()
    assert b"\n'=1+1.png,'=red," in written
    (tmp_path / "t.csv").write_bytes(written[:-40])
    again = predictor.predict_folder(folder, tmp_path / "t.csv", batch_size=3, top_k=3)
    pd.testing.assert_frame_equal(again, first)
    assert (tmp_path / "t.csv").read_bytes() == written


def test_a_folder_with_nothing_readable_leaves_no_table(predictor, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"No image in .* can be read: not an image"):
        predictor.predict_folder(tmp_path / "images", tmp_path / "t.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_nothing_is_cached_unless_asked_for(predictor, images, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    plain = predictor.predict_folder(images, num_workers=0)
    assert not (tmp_path / "user").exists()
    cached = predictor.predict_folder(images, num_workers=0, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "images").glob("*.pixels"))
    pd.testing.assert_frame_equal(cached, plain)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk here")
def test_a_disk_that_is_full_in_the_end_moves_the_table(predictor, images, tmp_path):
    (tmp_path / "t.csv").symlink_to("/dev/full")
    with pytest.warns(UserWarning, match=r"t\.csv could not be written .*No space left") as said:
        table = predictor.predict_folder(images, tmp_path / "t.csv", batch_size=3, num_workers=0)
    instead = str(said[0].message).split("The table is in ")[1].split(", on this machine")[0]
    assert len(pd.read_csv(instead)) == len(table) == 7


def test_parquet_needs_pyarrow_and_says_so_first(predictor, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    predictor.model.forward = pytest.fail  # an image was predicted
    with pytest.raises(ParameterError, match="pip install pyarrow"):
        predictor.predict_folder(images, tmp_path / "t.parquet")


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet_is_written_from_the_rows_at_the_end(predictor, images, tmp_path):
    table = predictor.predict_folder(images, tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)
    rows = (tmp_path / "t.parquet.csv").read_bytes()
    (tmp_path / "t.parquet.csv").write_bytes(rows[:-20])
    (tmp_path / "t.parquet").unlink()
    again = predictor.predict_folder(images, tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), again)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    shown = {"image_size": 16, "mean": [0.5] * 3, "std": [0.2] * 3}
    model = build_model("resnet18", 3, weights=None)
    return save_checkpoint(
        tmp_path / "run" / "best.pt", model, classes=CLASSES, preprocessing=shown
    )


def test_the_shell_predicts_a_folder(checkpoint, images, tmp_path, capsys):
    csv = str(tmp_path / "t.csv")
    main(["predict", str(checkpoint), str(images), "--csv", csv, "--num_workers", "0"])
    assert "7 rows in" in capsys.readouterr().out
    whole = pd.read_csv(csv)
    main(["predict", str(checkpoint.parent), str(images), "--csv", csv])  # a run's folder
    pd.testing.assert_frame_equal(pd.read_csv(csv), whole)
    with pytest.raises(SystemExit, match=r"^ParameterError: .*another top_k \(1, now 2\)"):
        main(["predict", str(checkpoint), str(images), "--csv", csv, "--top_k", "2"])
    with pytest.raises(SystemExit, match=r"^CheckpointError: There is no checkpoint"):
        main(["predict", str(tmp_path / "none.pt"), str(images)])


def test_a_thousand_files_have_a_row_each_and_the_thirty_bad_ones_a_reason(predictor, tmp_path):
    folder = many(tmp_path / "images", 1000)
    photograph = tmp_path / "a.jpg"
    Image.effect_noise((60, 50), 90).save(photograph)
    jpeg = photograph.read_bytes()
    kinds = {
        "the file is empty": b"",
        "not an image": b"<html>404</html>",
        "truncated": jpeg[: len(jpeg) // 2],
        "image file is truncated": (folder / "0001.png").read_bytes()[:-40],
        "not a file": None,
        "no such file": None,
    }
    for i in range(30):
        path, content = folder / f"{33 * i:04d}.png", list(kinds.values())[i % 6]
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        elif i % 6 == 4:
            os.mkfifo(path)
        else:
            path.symlink_to(tmp_path / "gone.png")
    table = predictor.predict_folder(folder, tmp_path / "t.csv", num_workers=2)
    bad = table["error"].notna()
    assert table.loc[bad, "path"].tolist() == [f"{33 * i:04d}.png" for i in range(30)]
    for row, reason in zip(table[bad].itertuples(), [*kinds] * 5, strict=True):
        assert reason in row.error and pd.isna(row.predicted)
    right = [CLASSES[int(path[:4]) % 3] for path in table.loc[~bad, "path"]]
    assert table.loc[~bad, "predicted"].tolist() == right and len(table) == 1000


@pytest.mark.slow
def test_several_processes_write_the_table_of_one(checkpoint, images, tmp_path):
    options = (checkpoint, images, "--batch_size=2", "--num_workers=0", "--top_k=2", "--csv")
    main(["predict", *map(str, options), str(tmp_path / "one.csv")])
    torchrun("-m", "resnet_ft", "predict", *options, tmp_path / "two.csv")
    one, two = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, atol=1e-5)
    about = [json.loads((tmp_path / f"{name}.csv.json").read_text()) for name in ("one", "two")]
    assert about[0] == about[1]
    assert not list(tmp_path.glob("*part*"))


@pytest.mark.slow
def test_the_part_of_a_lost_process_is_redone(tmp_path):
    folder = many(tmp_path / "images", 300)
    (folder / "0250.png").rename(folder / "0250_die.png")
    whole, csv = tmp_path / "whole.csv", tmp_path / "t.csv"
    run_script(folder, whole)
    lost = torchrun(script.__file__, folder, csv, "0.004", check=False, DIE="1")
    assert lost.returncode != 0 and not csv.exists()
    rows = (tmp_path / "t.csv.part-1-of-2").read_bytes().count(b"\n") - 1
    assert 0 < rows <= 100
    opened = torchrun(script.__file__, folder, csv).stdout.split()
    assert sum(map(int, opened)) <= 300 - rows
    assert csv.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*part*"))
