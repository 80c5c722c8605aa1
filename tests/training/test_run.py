import json

import pandas as pd
import pytest
from tiny import FailAt, noise_loaders, train
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft import (
    Run,
    RunError,
    WeightAverage,
    build_model,
    fit_head,
    load_checkpoint,
    load_run,
    make_dataloaders,
    space_of_run,
    train_model,
)


@pytest.fixture
def trained(photos, tmp_path):
    loaders = make_dataloaders(photos, image_size=32, batch_size=6, num_workers=0)
    model = build_model("resnet18", 2, weights=None)
    Run.open(tmp_path / "runs" / "first", {"data_source": str(photos), "seed": 0})
    model, history = train_model(model, loaders, num_epochs=2, run_dir=tmp_path / "runs" / "first")
    return tmp_path / "runs" / "first", model, history


def test_a_run_leaves_what_a_later_notebook_needs(trained, photos):
    folder, model, history = trained
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "images.csv.gz", "history.csv", "best.pt", "last.0.pt", "last.1.pt")
    }
    run = load_run(folder)
    pd.testing.assert_frame_equal(run.history, history)
    config = run.config
    assert config["data_source"] == str(photos) and config["seed"] == 0
    assert config["training"]["arch"] == "resnet18"
    assert config["training"]["images"] == {"train": 17, "val": 6}
    assert config["training"]["batch_size"] == 6
    assert config["training"]["optimizer_options"]["lr"] == 1e-4
    assert len(config["training"]["data_fingerprint"]) == 16
    assert {"python", "torch", "torchvision"} < set(config["versions"])
    checkpoint = load_checkpoint(run.best)
    assert checkpoint.classes == ["blue", "red"] == model.classes
    assert checkpoint.preprocessing["image_size"] == 32
    assert checkpoint.scores["val_accuracy"] == history["val_accuracy"].max()


def test_a_trained_run_is_never_overwritten(trained, photos):
    folder, model, _ = trained
    before = {path: path.read_bytes() for path in folder.iterdir()}
    loaders = make_dataloaders(photos, image_size=32, num_workers=0)
    with pytest.raises(RunError, match=r"batch_size was 6, now 32.*another run_dir"):
        train_model(model, loaders, num_epochs=1, run_dir=folder)
    with pytest.raises(RunError, match=r"first already holds a trained run.*another run_dir"):
        train_model(model, loaders, num_epochs=1, run_dir=folder, resume=False)
    with pytest.raises(RunError, match="already holds"):
        Run.open(folder, resume=False)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_that_does_not_know_its_data_says_what_to_give(trained, tmp_path):
    assert load_run(trained[0]).data_source == load_run(trained[0]).config["data_source"]
    run = Run.open(tmp_path / "from-python")
    with pytest.raises(RunError, match=r"data_dir in notebook 04, folder in notebook 05"):
        run.data_source  # noqa: B018


def test_a_missing_run_names_those_that_are_there(trained):
    with pytest.raises(RunError, match=r"second is not a trained run.*found beside it: first"):
        load_run(trained[0].parent / "second")


def test_a_run_of_a_network_of_ones_own_is_described(small_network, tmp_path):
    data = TensorDataset(*map(_stack, zip(*[(i, i % 2) for i in range(4)], strict=True)))
    loaders = {phase: DataLoader(data, batch_size=2) for phase in ("train", "val")}
    train_model(small_network, loaders, num_epochs=1, run_dir=tmp_path / "own")
    training = load_run(tmp_path / "own").config["training"]
    assert training["arch"] == "Sequential"
    assert training["classes"] is None and training["data_fingerprint"] is None


def _stack(values):
    import torch

    tensor = torch.tensor(values)
    return tensor if max(values) < 2 else torch.randn(len(values), 3, 9, 9)


def test_the_configuration_is_readable_and_grows(tmp_path):
    run = Run(tmp_path)
    run.record(name="été", path=tmp_path)
    run.record(more=[1, 2])
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert "été" in text
    assert json.loads(text) == {"name": "été", "path": str(tmp_path), "more": [1, 2]}


def test_a_configuration_that_cannot_be_read_is_named_and_kept(trained):
    folder, _, _ = trained
    file = folder / "config.json"
    file.write_text(file.read_text()[:50])
    before = file.read_bytes()
    for use in (Run.open, lambda folder: load_run(folder).data_source):
        with pytest.raises(RunError, match=r"config.json cannot be read .*another run_dir"):
            use(folder)
    assert file.read_bytes() == before


def test_a_run_follows_the_decisions_that_it_was_started_with(tmp_path):
    file = tmp_path / "decisions.csv"
    file.write_text("path,decision\n")
    run = Run.open(tmp_path / "run", decisions=file)
    file.unlink()
    assert run.decisions.read_text() == "path,decision\n"
    assert Run.open(tmp_path / "run", {"arch": "x"}).decisions is not None  # as train_model goes on
    assert Run.open(tmp_path / "run", decisions=file).decisions is None


def test_an_open_run_that_was_trained_refuses_other_parameters_and_keeps_its_own(tmp_path):
    """The cell of a notebook, changed and run again in the same session."""
    run = Run.open(tmp_path / "run", {"seed": 0})
    train(noise_loaders(), run, num_epochs=1)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(RunError, match=r"optimizer_options.lr was 0.01, now 0.02"):
        train(noise_loaders(), run, num_epochs=1, lr=0.02)
    with pytest.raises(RunError, match="seed was 0, now 1"):
        run.record(seed=1)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    _, history = train(noise_loaders(), run, num_epochs=2)  # as before, but for longer
    assert history["epoch"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "text",
    ["[]", "7", "null", "", '{"a":' * 100_000 + "1" + "}" * 100_000, '{"id": "../../x"}', "\0"],
)
def test_a_configuration_of_another_form_is_named(trained, text):
    folder, _, _ = trained
    (folder / "config.json").write_text(text)
    for use in (
        Run.open,
        lambda folder: Run(folder).id,
        lambda folder: load_run(folder).data_source,
    ):
        with pytest.raises(RunError, match=r"config.json cannot be read .*another run_dir"):
            use(folder)


def test_an_id_that_is_a_path_writes_nothing_outside_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"id": "../../../x"}')
    with pytest.raises(RunError, match="no identifier"):
        train(noise_loaders(), tmp_path / "run")
    assert not [path for path in tmp_path.rglob("*") if "x" in path.name]


def cut(text):
    return text[: text.index("\n") + 20]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "\0\1\2" * 50,
        cut,
        lambda text: text.replace("val_loss", "loss"),
        lambda text: text.replace("\n1,", "\nfirst,"),
        lambda text: text.replace("\n1,", "\ninf,"),
        lambda text: text.splitlines()[0],
        lambda text: text.replace("\n2,", "\n2,inf,"),
    ],
)
def test_a_damaged_history_is_rebuilt_from_the_resume_state_or_named(tmp_path, damage):
    _, history = train(noise_loaders(), tmp_path / "run", num_epochs=2)
    run, file = Run(tmp_path / "run"), tmp_path / "run" / "history.csv"
    damaged = damage(file.read_text())
    file.write_text(damaged)
    with pytest.warns(
        UserWarning, match=r"history\.csv cannot be read .*those of the resume state"
    ):
        pd.testing.assert_frame_equal(run.history, history)
    assert file.read_text() == damaged  # it may be the only copy of something
    for path in (tmp_path / "run").glob("last.?.pt"):
        path.unlink()
    with pytest.raises(RunError, match=r"history\.csv cannot be read .*another run_dir"):
        run.history  # noqa: B018


def test_a_solved_head_without_a_learning_rate_has_a_history(tmp_path):
    row = {"epoch": 0, "train_loss": float("inf"), "train_accuracy": 1.0, "val_loss": 0.5}
    row |= {"val_accuracy": 1.0, "learning_rate": float("nan"), "seconds": 1.0, "note": "of mine"}
    run = Run.open(tmp_path)
    run.save_history(pd.DataFrame([row, {**row, "epoch": 1, "train_loss": 0.5}]))
    assert run.history["epoch"].tolist() == [0, 1] and run.history["note"][0] == "of mine"


def test_a_name_that_is_not_utf_8_is_recorded(tmp_path):
    run = Run.open(tmp_path, {"data_source": "/data/caf\udce9"})
    assert run.data_source == "/data/caf\udce9"


@pytest.mark.slow
def test_the_space_that_a_run_takes_is_known_before(photos, tmp_path):
    """ResNet18 at 32 px: what is not weights (statistics, generators) is less than a tenth."""

    def gib(pattern):
        return sum(path.stat().st_size for path in (tmp_path / "run").glob(pattern)) / 2**30

    def run(**options):
        loaders = make_dataloaders(photos, image_size=32, batch_size=8, num_workers=0)
        model = build_model("resnet18", 2, weights=None)
        head = fit_head(model, loaders, cache_dir=tmp_path / "features")
        options |= {"run_dir": tmp_path / "run", "first_row": head.row}
        train_model(model, loaders, num_epochs=4, **options)

    expected = space_of_run("resnet18", num_classes=2)
    with pytest.raises(ZeroDivisionError):
        run(callbacks=[WeightAverage(), FailAt(4, 1, ZeroDivisionError())])
    assert gib("*") == pytest.approx(expected["while training"], rel=0.1)
    run(callbacks=[WeightAverage()])
    assert gib("*") == pytest.approx(expected["afterwards"], rel=0.1)
    alone = space_of_run("resnet18", num_classes=2, keep_resume_state=False)
    assert gib("best.pt") == pytest.approx(alone["afterwards"], rel=0.1)
