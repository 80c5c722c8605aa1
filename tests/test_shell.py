"""The shell: what each command answers, where it says it, and how it ends."""

import contextlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import torch
from conftest import ROOT, write_image
from typer.testing import CliRunner

import resnet_ft
from resnet_ft import (
    ParameterError,
    Predictor,
    Preprocessing,
    RunError,
    build_model,
    make_sample_dataset,
    save_checkpoint,
)
from resnet_ft.__main__ import app, main
from resnet_ft.training.launch import run_folder
from resnet_ft.training.options import FineTuneOptions, RunOptions

TINY = ("--arch", "resnet18", "--weights", "none", "--image_size", "32", "--num_workers", "0")
EVIL = "red\x1b[2J\u202egip"


EXPORTS = ("export_onnx", "export_safetensors", "export_web", "bundle")


def shell(*arguments, cwd=None, **options):
    """A command in a process of its own."""
    command = [sys.executable, "-m", "resnet_ft", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **options}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def parameters(function):
    return inspect.signature(function).parameters


def test_each_command_has_the_options_and_defaults_of_its_function():
    functions = {
        "sample": resnet_ft.make_sample_dataset,
        "stage": resnet_ft.stage_dataset,
        "audit": resnet_ft.audit_dataset,
        "train": resnet_ft.train_run,
        "evaluate": resnet_ft.evaluate_run,
        "report": resnet_ft.report,
        "predict": Predictor.predict_folder,
    }
    # What is no plain data, or has another name in a shell.
    others = {
        "stage": {"relative_to"},
        "train": {"options", "source"},
        "report": {"predictions", "curve"},
        "predict": {"self", "folder"},
    }
    own = {"train": {"source", "config"}, "predict": {"model", "images"}}
    schema = {
        name: field.default
        for kind in (RunOptions, FineTuneOptions)
        for name, field in kind.__dataclass_fields__.items()
        if name != "data_source"
    }
    for command in app.registered_commands:
        if (name := command.name) not in functions:
            continue
        expected = {
            one.name: one.default
            for one in parameters(functions[name]).values()
            if one.name not in others.get(name, ())
        }
        expected |= schema if name == "train" else {}
        found = {
            one.name: one.default
            for one in parameters(command.callback).values()
            if one.name not in {"context", "json", *own.get(name, ())}
        }
        assert found == expected, name


def test_an_export_has_the_options_of_its_formats():
    functions = [getattr(resnet_ft, name) for name in EXPORTS]
    known = {name: one.default for each in functions for name, one in parameters(each).items()}
    (export,) = [one for one in app.registered_commands if one.name == "export"]
    own = {"context", "json", "model", "path", "format"}
    found = {one.name: one.default for one in parameters(export.callback).values()}
    assert {name: known[name] for name in found.keys() - own} == {
        name: found[name] for name in found.keys() - own
    }
    formats = get_args(parameters(resnet_ft.__main__.export)["format"].annotation)
    assert {f"export_{one.split('-')[0]}" for one in formats} - {"export_bundle"} == {*EXPORTS[:-1]}


def test_help_names_every_command_and_loads_no_torch():
    code = "import sys; from resnet_ft.__main__ import main; main(['train', '--help'])"
    code += "; print({'torch', 'pandas', 'numpy'} & {*sys.modules})"
    command = [sys.executable, "-c", code]
    started = time.perf_counter()
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - started < 3  # 0.2 s, if the machine has nothing else to do
    assert answer.endswith("set()\n") and "--label_smoothing" in answer
    listed = shell().stdout
    for name in ("sample", "stage", "audit", "train", "evaluate", "report", "predict", "export"):
        assert f"\n  {name} " in listed
        text = shell(name, "--help", TERM="xterm-256color").stdout
        assert "\x1b" not in text and max(map(len, text.splitlines())) <= 80


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with photographs and a run on them, as one command makes it; and its answer."""
    folder = tmp_path_factory.mktemp("shell")
    make_sample_dataset(folder / "photos")
    for split in ("Train", "Val", "Test"):
        for kind in ("fish", "flower"):
            shutil.rmtree(folder / "photos" / split / kind)
    torch.set_num_threads(1)
    with contextlib.chdir(folder):
        decided = resnet_ft.decisions_file("runs", "photos")
        decided.parent.mkdir()
        decided.write_text("path,decision\nTrain/balloon/balloon_000.jpg,exclude\n")
        answer = CliRunner().invoke(app, ["train", "photos", *TINY, "--epochs", "1"])
    assert answer.exit_code == 0, answer.stderr
    return folder, answer


@pytest.fixture
def inside(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    return trained[0]


def answer_of(*arguments):
    """What a command in this process writes to stdout."""
    answer = CliRunner().invoke(app, [*map(str, arguments)])
    assert answer.exit_code == 0, answer.stderr
    return answer.stdout


def test_one_command_trains_evaluates_and_reports(trained):
    folder, answer = trained
    run = folder / "runs" / "photos-resnet18"
    assert {"best.pt", "evaluation.csv", "calibration.json", "report.html"} <= set(os.listdir(run))
    assert "images accuracy  from" in answer.stdout and "test" in answer.stdout
    assert "Report: runs/photos-resnet18/report.html" in answer.stdout
    progress = answer.stderr
    assert "photos: 136 images (80 train, 32 val, 24 test) of 2 classes. Nothing was" in progress
    assert "epoch  1/1" in progress and "loss" not in answer.stdout
    assert "79 train, 32 val, 24 test, 2 classes; 1 excluded by you" in progress
    assert "Warning: Taken as it is meant: weights 'none' as None.\n" in progress
    assert not {"\r", "\x1b"} & {*progress, *answer.stdout}  # a log gets no bars
    assert json.loads((run / "config.json").read_text())["data_source"] == "photos"


def test_the_same_command_returns_at_once_and_a_run_stands_for_itself(trained, inside):
    run = inside / "runs" / "photos-resnet18"
    files = [run / name for name in ("best.pt", "evaluation.csv", "report.html")]
    before = [file.stat().st_mtime_ns for file in files]
    for again in (["photos", *TINY, "--epochs", "1"], [run], ["--config", run / "config.json"]):
        assert answer_of("train", *again).replace(f"{inside}/", "") == trained[1].stdout
    assert json.loads(answer_of("train", run, "--json"))["report"] == str(run / "report.html")
    assert [file.stat().st_mtime_ns for file in files] == before


def test_what_was_trained_is_never_overwritten(inside, tmp_path):
    config = inside / "runs" / "photos-resnet18" / "config.json"
    before = config.read_bytes()
    with pytest.raises(RunError, match="batch_size was 32, now 8"):
        resnet_ft.train_run("photos", arch="resnet18", weights=None, image_size=32, batch_size=8)
    other = shutil.copytree(inside / "photos", tmp_path / "photos")
    with pytest.raises(RunError, match=r"holds a run on photos\. Choose another run_dir"):
        resnet_ft.train_run(other, arch="resnet18", weights=None, image_size=32)
    with pytest.raises(ParameterError, match="leave run_dir out"):
        resnet_ft.train_run(config, run_dir="runs/other")
    with pytest.raises(ParameterError, match="colour is not a parameter"):
        resnet_ft.train_run("photos", colour="red")
    assert config.read_bytes() == before


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a/photos", "photos-resnet18"),
        ("photos.tar.gz", "photos-resnet18"),
        ("https://a.example/my%20photos.zip?key=1", "my-20photos-resnet18"),
        ("kaggle:somebody/birds", "birds-resnet18"),
    ],
)
def test_a_run_is_named_after_its_photographs_and_its_network(source, name, tmp_path):
    assert run_folder(source, arch="resnet18") == Path("runs", name)
    assert run_folder(source, tmp_path / "mine") == tmp_path / "mine"


def test_results_are_also_json(inside):
    run = "runs/photos-resnet18"
    photo = next(inside.glob("photos/Test/*/*.jpg"))
    found = json.loads(answer_of("predict", run, photo, "--top-k", "2", "--json"))
    assert found["class_name"] == found["top"][0]["class_name"] and len(found["top"]) == 2
    assert answer_of("predict", run, photo).startswith(f"{found['class_name']} ")
    rows = json.loads(answer_of("predict", run, photo, inside / "none.jpg", "--json"))
    assert [row["predicted"] for row in rows] == [found["class_name"], None]
    assert rows[1]["error"] == "there is no such file"
    folder = json.loads(answer_of("predict", run, "photos/Test", "--num_workers", "0", "--json"))
    assert folder["rows"] == 24 and folder["csv"] == "predictions.csv"
    assert len((inside / "predictions.csv").read_text().splitlines()) == 25
    scores = json.loads(answer_of("evaluate", run, "--num_workers", "0", "--json"))
    assert scores["val"]["images"] == 32 and 0 <= scores["val"]["from"] < scores["val"]["to"] <= 1
    assert json.loads(answer_of("audit", "photos", "--json")) == {"images": 136, "issues": []}
    assert json.loads(answer_of("report", run, "--json")) == {"path": f"{run}/report.html"}


def test_an_audit_lists_its_findings(tmp_path):
    answer_of("sample", tmp_path / "flawed", "--flawed")
    listed = answer_of("audit", tmp_path / "flawed")
    assert "flaw_blurred.jpg" in listed and "leakage" in listed
    found = json.loads(answer_of("audit", tmp_path / "flawed", "--json"))["issues"]
    assert len(found) == len(resnet_ft.audit_dataset(tmp_path / "flawed").issues)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train nowhere", r"^DatasetError: There is no data set at nowhere.*$"),
        ("train . --epochs -1", r"^ParameterError: epochs=-1 should be .*$"),
        ("evaluate .", r"^RunError: .* is not a trained run.*$"),
        ("sample file/below", r"^NotADirectoryError: .*file.*$"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, said, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert re.fullmatch(said, ended.value.code)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("stage nowhere", 1, r"^DatasetError: There is no data set at nowhere.*\n$"),
        ("train . --epochs x", 2, "valid integer"),
        ("train . --mix all", 2, "not one of 'mixup', 'cutmix', 'both'"),
        ("train", 2, "Usage: resnet_ft train SOURCE"),
        ("trian", 2, "Did you mean 'train'?"),
    ],
)
def test_mistakes_have_exit_codes(arguments, code, said, tmp_path):
    ended = shell(*arguments.split(), cwd=tmp_path)
    assert ended.returncode == code and not ended.stdout
    assert re.search(said, ended.stderr) and "Traceback" not in ended.stderr


def test_a_crash_shows_where_and_an_interrupt_does_not(monkeypatch, capsys):
    for error, code in ((ZeroDivisionError(EVIL), 70), (KeyboardInterrupt(), 130)):
        monkeypatch.setattr(resnet_ft, "audit_dataset", lambda error=error, **_: raises(error))
        with pytest.raises(SystemExit) as ended:
            main(["audit", "photos"])
        said = capsys.readouterr().err
        assert ended.value.code == code and ("Traceback" in said) == (code == 70)
        assert "\x1b" not in said


def raises(error):
    raise error


@pytest.fixture
def evil(tmp_path):
    """A model whose classes have names that a terminal would obey."""
    model = build_model("resnet18", 2, weights=None)
    save_checkpoint(
        tmp_path / "best.pt",
        model,
        classes=[EVIL, "Blüte"],
        preprocessing=asdict(Preprocessing(32)),
    )
    write_image(tmp_path / f"{EVIL}.png")
    write_image(tmp_path / "a.png")
    return tmp_path


def test_names_do_not_command_the_terminal(evil):
    for arguments in ([evil / "a.png"], [evil / "a.png", evil / f"{EVIL}.png"]):
        found = answer_of("predict", evil / "best.pt", *arguments, "--top_k", "2")
        assert "gip" in found and not {"\x1b", "\u202e"} & {*found}
    told = json.loads(answer_of("predict", evil / "best.pt", evil / "a.png", "--top_k=2", "--json"))
    assert {one["class_name"] for one in told["top"]} == {EVIL, "Blüte"}
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(evil / "best.pt"), f"{EVIL}.jpg"])
    assert "\\x1b" in ended.value.code and "\x1b" not in ended.value.code


def test_any_terminal_and_any_pipe_will_do(photos):
    folder = photos.rename(photos.with_name("Blüte"))
    assert "/Bl?te: 23 images" in shell("audit", folder, PYTHONIOENCODING="ascii").stdout
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does when it has read enough
    command = [sys.executable, "-m", "resnet_ft", "audit", str(folder)]
    options = {"stdout": writing, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    ended = subprocess.run(command, check=False, **options)
    os.close(writing)
    assert ended.returncode == 0 and ended.stderr == ""


def test_a_shell_completes_commands_and_options():
    for words, found in (("resnet_ft tr", "train"), ("resnet_ft train --learn", "--learning_rate")):
        place = str(len(words.split()) - 1)
        asked = {"_RESNET_FT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
        assert shell(**asked).stdout.split() == [found]
    assert "_RESNET_FT_COMPLETE" in shell(_RESNET_FT_COMPLETE="source_bash").stdout


@pytest.mark.slow
def test_an_interrupted_training_says_what_was_saved_and_resumes(trained, tmp_path):
    arguments = ["train", trained[0] / "photos", *TINY, "--epochs", "9", "--run_dir", "run"]
    command = [sys.executable, "-m", "resnet_ft", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True
    )
    for line in process.stderr:
        if line.startswith("epoch  1/9"):
            break
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in said
    assert "run: interrupted; saved at epoch" in said
    ended = shell(*arguments, cwd=tmp_path)
    assert ended.returncode == 0 and "resumes" in ended.stderr
    answer_of("train", tmp_path / "run", "--epochs", "10")  # a longer one continues it
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["epoch"].tolist() == [*range(1, 11)]


@pytest.mark.slow
def test_a_person_gets_from_nothing_to_a_model_elsewhere(tmp_path):
    def does(line):
        ended = shell(*line.split()[1:], cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    does("resnet_ft sample photos")
    does(f"resnet_ft train photos {' '.join(TINY)} --epochs 1 --run_dir runs/first")
    does("resnet_ft evaluate runs/first")
    assert "48 rows in predictions.csv" in does("resnet_ft predict runs/first photos/Test")
    photo = sorted(tmp_path.glob("photos/Test/*/*.jpg"))[0].relative_to(tmp_path)
    assert "%" in does(f"resnet_ft predict runs/first {photo}")
    assert does("resnet_ft report runs/first") == "runs/first/report.html\n"
    for kind in ("onnx", "onnx-fp16", "safetensors", "bundle"):
        made = does(f"resnet_ft export runs/first {kind}.out --format {kind}").strip()
        assert (tmp_path / made).exists()
