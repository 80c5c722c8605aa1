import dataclasses
import inspect
import json
import math
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft import (
    Callback,
    FineTuneOptions,
    LivePlot,
    ParameterError,
    RunError,
    TrainingError,
    build_model,
    evaluate,
    find_label_errors,
    fine_tune,
    freeze,
    load_checkpoint,
    load_run,
    make_dataloaders,
    scored_weights,
    train_run,
)
from resnet_ft.evaluation.predictions import Predictions
from resnet_ft.training import head as head_module


def network(pretrained=True):
    torch.manual_seed(0)
    model = build_model("resnet18", 2, weights=None)
    model.pretrained = pretrained
    return model


@pytest.fixture
def loaders(photos):
    return make_dataloaders(photos, image_size=32, batch_size=5, num_workers=0)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Watch(Callback):
    """What trains, and how, in each step."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, state):
        if state.phase == "train":
            batchnorm = [m for m in state.model.modules() if isinstance(m, nn.BatchNorm2d)]
            rates = [group["lr"] for group in state.optimizer.param_groups]
            self.steps.append((sum(m.training for m in batchnorm), min(rates), max(rates)))


def test_the_head_comes_first_and_the_best_of_all_is_kept(loaders, tmp_path):
    model, history = fine_tune(network(), loaders, epochs=3, run_dir=tmp_path / "run")
    assert history["epoch"].tolist() == [0, 1, 2, 3]
    assert history["val_accuracy"][0] >= 0.8  # red and blue can be told from random features
    assert history["between_val_loss"].notna().tolist() == [False, False, False, True]
    best = evaluate(model, loaders["val"]).accuracy
    scored = scored_weights(history).set_index("kept")
    assert best == pytest.approx(scored["val_accuracy"][True])
    assert scored["val_loss"][True] <= history["val_loss"][0]
    saved = load_checkpoint(tmp_path / "run" / "best.pt")
    assert evaluate(saved.load_into(), loaders["val"]).accuracy == best
    assert saved.scores["val_accuracy"] == pytest.approx(best)
    stored = pd.read_csv(tmp_path / "run" / "history.csv")
    assert stored["val_loss"].tolist() == pytest.approx(history["val_loss"].tolist())


def test_the_head_is_announced_and_drawn_before_the_first_epoch(loaders, tmp_path, capsys):
    plot = LivePlot(tmp_path / "history.png")
    _, history = fine_tune(network(), loaders, epochs=0, callbacks=[plot])
    assert "(cross-validated), val " in capsys.readouterr().out
    assert (tmp_path / "history.png").exists()
    assert list(history)[-2:] == ["learning_rate", "seconds"]


def test_fine_tuning_never_ends_worse_than_the_head(loaders, tmp_path):
    head, history = fine_tune(network(), loaders, epochs=0)
    accuracy = evaluate(head, loaders["val"]).accuracy
    ruined, after = fine_tune(network(), loaders, epochs=1, learning_rate=0.3)
    assert after["val_loss"][1] > 2 * history["val_loss"][0]
    assert evaluate(ruined, loaders["val"]).accuracy == accuracy == history["val_accuracy"][0]
    for name, tensor in head.state_dict().items():
        torch.testing.assert_close(ruined.state_dict()[name], tensor)


def test_the_head_is_saved_before_anything_else_is_trained(loaders, tmp_path):
    class Disconnect(Callback):
        def on_step_begin(self, state):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(network(), loaders, run_dir=tmp_path / "run", callbacks=[Disconnect()])
    saved = load_checkpoint(tmp_path / "run" / "best.pt")
    assert saved.scores["epoch"] == 0
    assert evaluate(saved.load_into(), loaders["val"]).accuracy == saved.scores["val_accuracy"]


def test_the_heads_out_of_sample_answers_are_kept_and_find_wrong_labels(photos, tmp_path):
    wrong = photos / "Train" / "red" / "wrong.png"
    (photos / "Train" / "blue" / "0.png").rename(wrong)
    loaders = make_dataloaders(photos, image_size=32, num_workers=0)
    _, history = fine_tune(network(), loaders, epochs=0, run_dir=tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "head_predictions.csv")
    assert sorted(table["path"]) == sorted(path for path, _ in loaders["train"].dataset.samples)
    classes = ["blue", "red"]
    probabilities = table[[f"p({name})" for name in classes]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    accuracy = (table["predicted"] == table["label"]).mean()
    assert history["train_accuracy"][0] == pytest.approx(accuracy)
    assert history["train_loss"][0] == pytest.approx(table["loss"].mean(), rel=1e-4)
    predictions = Predictions(table, probabilities, classes)
    assert str(wrong) == find_label_errors(predictions)["path"][0]


def test_gigabytes_of_out_of_sample_answers_are_not_written_and_this_is_said(
    loaders, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(head_module, "_MOST_IN_TABLE", 33)  # 17 images, 2 classes
    fine_tune(network(), loaders, epochs=0, run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "head_predictions.csv").exists()
    assert "head_predictions.csv is left out" in capsys.readouterr().out


def test_a_network_of_random_weights_trains_whole_from_the_start(loaders):
    watch = Watch()
    _, history = fine_tune(network(pretrained=False), loaders, epochs=2, callbacks=[watch])
    assert history["epoch"].tolist() == [1, 2]
    batchnorm, slowest, fastest = zip(*watch.steps, strict=True)
    assert min(batchnorm) == 20 and slowest == fastest


@pytest.mark.parametrize(("pretrained", "epochs"), [(True, 5), (False, 25)])
def test_from_random_weights_there_is_more_to_learn(pretrained, epochs, loaders):
    class Look(Callback):
        def on_step_end(self, state):
            self.num_epochs, state.should_stop = state.num_epochs, True

    look = Look()
    fine_tune(network(pretrained), loaders, callbacks=[look])
    assert look.num_epochs == epochs


@pytest.mark.parametrize(("train_batchnorm", "training"), [(False, 0), (True, 20)])
def test_batchnorm_stands_still_unless_asked_and_early_layers_move_less(
    loaders, train_batchnorm, training
):
    watch, model = Watch(), network()
    mean = model.bn1.running_mean.clone()
    fine_tune(
        model,
        loaders,
        epochs=4,
        learning_rate=1e-3,
        train_batchnorm=train_batchnorm,
        average_weights=False,
        callbacks=[watch],
    )
    batchnorm, slowest, fastest = map(np.array, zip(*watch.steps, strict=True))
    assert (batchnorm == training).all()
    np.testing.assert_allclose(fastest / slowest, 10)
    assert 3 <= len(fastest) / 4 <= 4 and fastest[0] < 2e-5
    assert 5e-4 < fastest.max() <= 1e-3 and fastest[-1] < fastest.max() / 5
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert train_batchnorm or torch.equal(model.bn1.running_mean, mean)


def test_what_was_frozen_stays_frozen(loaders):
    model = network()
    freeze(model, until="layer4")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    fine_tune(model, loaders, epochs=1)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])]
    assert {name.split(".")[0] for name in changed} <= {"layer4", "fc"}


def test_a_head_of_several_layers_is_trained_on_features(loaders, capsys):
    model = network()
    model.fc = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 2))
    _, history = fine_tune(model, loaders, epochs=0)
    assert history["val_accuracy"][0] >= 0.8
    assert "epoch 30/30" in capsys.readouterr().out


@pytest.mark.slow
def test_the_time_budget_is_kept_within_a_tenth(photos):
    seconds = 12.0
    loaders = make_dataloaders(photos, image_size=64, batch_size=4, num_workers=0)
    started = time.perf_counter()
    _, history = fine_tune(network(), loaders, minutes=seconds / 60)
    assert time.perf_counter() - started == pytest.approx(seconds, rel=0.1)
    assert history["epoch"].max() >= 2


def test_a_budget_that_the_head_uses_up_ends_with_the_head(loaders):
    model, history = fine_tune(network(), loaders, minutes=0.001)
    assert history["epoch"].tolist() == [0]
    assert evaluate(model, loaders["val"]).accuracy == history["val_accuracy"][0]


def test_options_of_the_recipe_go_together(loaders):
    options = {"mix": "both", "balance": "sampler", "label_smoothing": 0.1, "patience": 1}
    _, history = fine_tune(network(), loaders, epochs=6, learning_rate=1.0, **options)
    assert len(history) < 7  # patience
    _, history = fine_tune(network(), loaders, epochs=1, balance="loss", average_weights=False)
    assert "ema_val_loss" not in history


def test_contradictions_are_refused_before_anything_is_made(loaders, tmp_path):
    with pytest.raises(ParameterError, match="epochs or minutes"):
        fine_tune(network(), loaders, epochs=1, minutes=1, run_dir=tmp_path / "run")
    with pytest.raises(ParameterError, match="random weights"):
        fine_tune(network(pretrained=False), loaders, epochs=0, run_dir=tmp_path / "run")
    with pytest.raises(ParameterError, match="balance='weights'"):
        fine_tune(network(), loaders, balance="weights", run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    _, history = fine_tune(network(), loaders, epochs=0, run_dir=tmp_path / "run")
    with pytest.raises(RunError, match="already holds"):
        fine_tune(network(), loaders, epochs=0, run_dir=tmp_path / "run", resume=False)
    with pytest.raises(RunError, match=r"fine_tune.seed was 0, now 1"):
        fine_tune(network(), loaders, epochs=0, seed=1, run_dir=tmp_path / "run")
    again, same = fine_tune(network(), loaders, epochs=0, run_dir=tmp_path / "run")
    assert same.equals(history) and not again.training
    for name in ("last.0.pt", "last.1.pt"):  # as one may, who is content
        (tmp_path / "run" / name).unlink(missing_ok=True)
    with pytest.raises(RunError, match=r"fine_tune.seed was 0, now 1"):
        fine_tune(network(), loaders, epochs=0, seed=1, run_dir=tmp_path / "run")


@pytest.mark.parametrize(
    "options",
    [
        {"mix": "mixupp"},
        {"minutes": 0},
        {"epochs": -1},
        {"epochs": 2.5},
        {"patience": 0},
        {"learning_rate": 0},
        {"optimizer": "lion"},
        {"schedule": "cosinus"},
        {"balance": "weights"},
    ],
)
def test_options_are_checked_before_the_images_are_looked_at(loaders, tmp_path, options):
    with pytest.raises(ParameterError, match=next(iter(options))):
        fine_tune(network(), loaders, cache_dir=tmp_path / "features", **options)
    assert not (tmp_path / "features").exists()


def test_a_head_for_other_classes_is_refused_before_the_images_are_looked_at(loaders, tmp_path):
    model = build_model("resnet18", 5, weights=None)
    model.pretrained = True
    with pytest.raises(ParameterError, match=r"gives \[5\] for an image.*2 classes"):
        fine_tune(model, loaders, cache_dir=tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_other_loaders_and_a_frozen_network_are_refused(loaders):
    plain = DataLoader(TensorDataset(torch.zeros(2, 3, 9, 9), torch.tensor([0, 1])))
    for others in ({"train": plain, "val": plain}, {"train": loaders["train"]}):
        with pytest.raises(ParameterError, match="make_dataloaders"):
            fine_tune(network(), others)
    model = network()
    for parameter in model.parameters():
        parameter.requires_grad = False
    with pytest.raises(TrainingError, match="Every layer is frozen"):
        fine_tune(model, loaders)


def test_patience_counts_from_the_head_on(loaders):
    class Worse(Callback):
        def on_phase_end(self, state):
            if state.phase == "val":
                state.row["val_loss"] = 99.0

    options = {"patience": 2, "average_weights": False, "callbacks": [Worse()]}
    _, history = fine_tune(network(), loaders, epochs=6, **options)
    assert history["epoch"].tolist() == [0, 1, 2]


def test_the_run_knows_how_it_was_made(loaders, tmp_path):
    options = {"epochs": 1, "mix": "mixup", "seed": 3, "weight_decay": 0.02}
    fine_tune(network(), loaders, run_dir=tmp_path / "run", **options)
    config = load_run(tmp_path / "run").config
    assert config["fine_tune"].items() >= options.items()
    assert config["training"]["optimizer_options"]["lr"] == pytest.approx(3e-4)
    assert config["training"]["optimizer_options"]["weight_decay"] == 0.02


def test_with_weighted_classes_the_head_is_scored_as_the_epochs_are(loaders, photos):
    for i in range(3):
        (photos / "Train" / "red" / f"{i}.png").unlink()
    unequal = make_dataloaders(photos, image_size=32, batch_size=4, num_workers=0)
    still = {"learning_rate": 1e-12, "average_weights": False}
    _, history = fine_tune(network(), unequal, epochs=1, balance="loss", **still)
    assert history["val_loss"][1] == pytest.approx(history["val_loss"][0], rel=1e-3)


def test_the_options_are_listed_once():
    parameters = inspect.signature(fine_tune).parameters
    for option in dataclasses.fields(FineTuneOptions):
        assert parameters[option.name].default == option.default, option.name
    others = set(parameters) - {option.name for option in dataclasses.fields(FineTuneOptions)}
    # What does not change a run's numbers, or cannot be recorded.
    assert others == {
        *("model", "dataloaders", "run_dir", "resume", "cache_dir", "callbacks", "metrics"),
        "compile_model",
    }


@pytest.mark.parametrize("entry", ["model", "run_dir", "epoch"])
def test_a_config_with_an_option_that_fine_tune_does_not_take_from_it_is_refused(tmp_path, entry):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"fine_tune": {entry: 1, "epochs": 1}}))
    with pytest.raises(ParameterError, match=rf'unknown "fine_tune" entries: {entry}\.'):
        train_run(file)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_schedule_leads_the_learning_rate(loaders, schedule):
    watch = Watch()
    fine_tune(network(), loaders, epochs=3, schedule=schedule, callbacks=[watch])
    highest = [high for _, _, high in watch.steps]
    assert len(highest) == 12  # four steps per epoch, for 17 images
    rest = (11 / 12 - 0.1) / 0.9  # of the way after the warm-up, when 11 of 12 steps are done
    expected = {"cosine": (1 + math.cos(math.pi * rest)) / 2, "linear": 1 - rest, "constant": 1.0}
    assert highest[0] == pytest.approx(3e-4 * 0.01)
    assert highest[-1] == pytest.approx(3e-4 * expected[schedule])


def halves(progress):
    return 0.5 if progress < 0.5 else 0.25


def test_a_schedule_may_be_a_function_and_is_recorded_by_its_name(loaders, tmp_path):
    watch = Watch()
    options = {"epochs": 2, "schedule": halves, "run_dir": tmp_path / "run"}
    fine_tune(network(), loaders, **options, callbacks=[watch])
    assert {high for _, _, high in watch.steps} == {1.5e-4, 0.75e-4}
    assert load_run(tmp_path / "run").config["fine_tune"]["schedule"] == "halves"
    fine_tune(network(), loaders, **options)  # finished: the function is recognised


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("sgd", "SGD"), ("adamw", "AdamW")])
def test_the_optimizer_is_chosen_by_name(loaders, tmp_path, name, kind):
    fine_tune(network(), loaders, epochs=1, optimizer=name, run_dir=tmp_path / "run")
    assert load_run(tmp_path / "run").config["training"]["optimizer"] == kind


def test_outputs_beyond_half_precision_have_a_head_that_is_solved_and_then_train(loaders, capsys):
    model = network()
    with torch.no_grad():
        model.layer4[1].bn2.weight.fill_(1e6)
    _, history = fine_tune(model, loaders, epochs=1, learning_rate=1e-9)
    assert history["epoch"].tolist() == [0, 1]
    assert history["val_accuracy"][0] == 1.0
    assert capsys.readouterr().out.count("above 65,504, which half precision cannot") == 1


def test_outputs_that_are_not_finite_are_an_error_with_the_remedy(loaders):
    model = network()
    with torch.no_grad():
        model.layer4[1].bn2.weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"not finite.*notebook 02.*mixed_precision=.no"):
        fine_tune(model, loaders, epochs=1)
