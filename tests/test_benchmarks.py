"""What the tables of the benchmarks make of measured rows."""

import importlib

import pytest
from conftest import ROOT

MEASURED = {"machine": "a machine", "versions": {"torch": "2.5"}, "date": "2026-01-01"}


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def cells(markdown, beginning):
    """The cells of the row that begins like this."""
    (line,) = (line for line in markdown.splitlines() if line.startswith(f"| {beginning}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def training(library, recipe, seconds, epochs):
    row = {"library": library, "recipe": recipe, "seconds": seconds, "epochs": epochs}
    return {f"training / {library} / {recipe}": MEASURED | row}


def test_two_epochs_of_the_others_are_scaled_to_ten(module):
    results = (
        training("resnet_ft", "frozen", 20.0, [0.1] * 10)
        | training("resnet_ft", "second head", 2.0, [0.1] * 10)
        | training("resnet_ft", "layer4", 50.0, [9.0, 3.0, 4.0, 8.0])
        | training("tutorial", "frozen", 45.0, [24.0, 20.0])  # 1 second before the first epoch
        | training("tutorial", "layer4", 45.0, [24.0, 20.0])
        | training("fastai", "frozen", 90.0, [50.0, 40.0])
    )
    markdown = module("training_table").training_markdown(results)
    assert cells(markdown, "PyTorch tutorial")[1:] == ["205", "205", "20.0"]  # 1 + 24 + 9 * 20
    assert cells(markdown, "**resnet_ft**")[1:] == ["20.0", "2.0", "4.0"]
    assert cells(markdown, "10 epochs")[1] == "10.2 times faster"
    assert cells(markdown, "again")[1] == "102.5 times faster"
    assert cells(markdown, "an epoch")[1] == "5.0 times faster"


def test_train_model_beside_the_bare_loops_is_the_median_of_pairs(module):
    loops = {"train_model": [9.0, 12.0, 10.5], "bare": [10.0, 10.0, 10.0]}
    row = MEASURED | loops | {"bare_channels_last": [7.5, 10.0, 7.5]}
    row |= {"library": "resnet_ft", "recipe": "nothing frozen"}
    results = {"training / resnet_ft / nothing frozen": row}
    markdown = module("training_table").training_markdown(results)
    assert cells(markdown, "nothing frozen")[1:] == ["5.0% slower", "at most 3% slower"]
    assert cells(markdown, "the same")[1:] == ["20.0% slower", ""]


def test_a_million_files_are_beside_their_targets(module):
    row = MEASURED | {"files": 1_000_000, "index_s": 7.25, "index_mb": 70.0, "index_peak_mb": 80.0}
    row |= {"batches": 12_500, "worker_first_mb": 11.5, "worker_last_mb": 12.0}
    markdown = module("scale_table").scale_markdown({"scale": row})
    assert cells(markdown, "1,000,000 files")[1:] == ["measured", "target"]
    assert cells(markdown, "MB of the index")[1:] == ["70", "less than 200"]
    assert cells(markdown, "MB that a worker")[1:] == ["0.5", "less than 2"]
    assert module("scale_table").scale_markdown({}) == ""


def test_hours_of_a_large_head_are_the_passes_of_a_smaller_one(module):
    solve = {"images": 100_000, "classes": 100, "features": 2048, "seconds": 300.0, "threads": 2}
    solve |= {"peak_mb": 1800.0, "rows_for_penalty": 10_000_000}
    solve |= {"passes_of_a_fold": 70.0, "passes_of_all": 20.0}
    once = {"images": 1_000_000, "classes": 1000, "features": 2048, "threads": 2}
    once |= {"preparation_s": 36.0, "seconds": 72.0, "peak_mb": 120.0}
    results = {"solver / solve": MEASURED | solve, "solver / pass": MEASURED | once}
    markdown = module("solver_table").solver_markdown(results)
    assert cells(markdown, "100,000 x 100")[1:] == ["300", ""]
    assert cells(markdown, "1,000,000 x 1,000")[1:] == ["72", ""]
    assert cells(markdown, "hours")[:2] == ["hours of 100 passes, projected", "2.0"]  # 7,236 s
    assert module("solver_table").solver_markdown({}) == ""


def test_accuracy_is_the_mean_of_seeds_with_its_standard_error(module):
    results = {
        f"hymenoptera / tutorial / frozen / seed {seed}": MEASURED
        | {"data_set": "hymenoptera", "library": "tutorial", "recipe": "frozen", "seed": seed}
        | {"accuracy": accuracy, "seconds": seconds}
        for seed, (accuracy, seconds) in enumerate([(0.7, 30.0), (0.8, 90.0), (0.9, 40.0)])
    }
    markdown = module("accuracy_table").accuracy_markdown(results)
    # The standard deviation is 0.1, divided by the root of 3.
    expected = ["0.800 ± 0.058 (40 s)", "", "", ""]
    assert cells(markdown, "PyTorch tutorial, frozen")[1:] == expected
    assert module("accuracy_table").accuracy_markdown({}) == ""
    assert module("accuracy_table").accuracy_summary_markdown(results) == ""  # of one data set


def test_the_summary_is_the_mean_over_the_data_sets(module):
    results = {
        f"{data_set} / tutorial / full / seed 0": MEASURED
        | {"data_set": data_set, "library": "tutorial", "recipe": "full", "seed": 0}
        | {"accuracy": accuracy, "seconds": seconds}
        for data_set, accuracy, seconds in [
            ("hymenoptera", 0.7, 30.0),
            ("flowers12", 0.8, 60.0),
            ("signdigits10", 0.9, 120.0),
        ]
    }
    markdown = module("accuracy_table").accuracy_summary_markdown(results)
    assert cells(markdown, "EfficientNet-Lite0, 128 pixels")  # the network and the size
    assert cells(markdown, "PyTorch tutorial, full")[1:] == ["0.800", "70 s"]


def test_prediction_is_beside_the_fastest_configuration_of_the_others(module):
    speeds = {
        "resnet_ft / predict_folder": [60.0, 66.0, 72.0],
        "torchvision / transforms": [30.0, 40.0, 20.0],
        "torchvision / transforms.v2": [10.0, 10.0, 99.0],
        "timm / inference.py": [43.0, 44.0, 45.0],
    }
    row = {"data_set": "500x375", "arch": "resnet18", "images_per_s": speeds}
    first = {"bare_s": 2.0, "ours_s": 2.5, "seconds": {"bare": [2.0], "ours": [2.5]}}
    results = {
        "predicting / 500x375 / resnet18": MEASURED | row,
        "predicting / first answer": MEASURED | first,
    }
    markdown = module("predicting_table").predicting_markdown(results)
    assert cells(markdown, "a plain DataLoader loop")[1:] == ["30.0", "", "", ""]
    assert cells(markdown, "ResNet18, 500x375")[1:] == ["1.50 times", "at least 1.2 times"]
    assert cells(markdown, "a first answer")[1:] == ["1.25 times as long", "at most 1.5 times"]
    assert "10.0, 10.0, 99.0" in module("predicting_table").all_predicting_markdown(results)
    assert module("predicting_table").predicting_markdown({}) == ""


def recipe(variant, accuracies, data_set="waste6", draw=0, images=10):
    """A run of two epochs on a hundred test images; the validation loss is 1 less the accuracy."""
    names = ("head", "epoch 2", "average 2", "0.5 end")
    scores = {name: [1 - one, one] for name, one in zip(names, accuracies, strict=True)}
    row = {"date": "2026-01-01", "epochs": [[0.5, 0.5, 0.5, 0.5]] * 2, "seconds": 1.0}
    row |= {"chosen": "epoch 2", "lowest_loss": "head", "val": scores, "test": scores}
    name = f"{data_set} / {images} images / draw {draw} / 2 epochs / {variant}"
    return {name: row}


def test_variants_of_a_recipe_are_compared_in_the_cells_that_both_have(module):
    results = {
        "machine": MEASURED,
        **recipe("today", [0.5, 0.60, 0.6, 0.6], draw=0),
        **recipe("today", [0.5, 0.60, 0.6, 0.6], draw=1),
        **recipe("today", [0.5, 0.90, 0.6, 0.6], draw=2),  # without its other half
        **recipe("smoothing", [0.5, 0.62, 0.6, 0.6], draw=0),
        **recipe("smoothing", [0.5, 0.64, 0.6, 0.6], draw=1),
    }
    markdown = module("recipe_table").recipe_markdown(results)
    # Differences of 2 and 4 points: a standard deviation of 1.41, over the root of 2.
    assert cells(markdown, "smoothing")[2] == "**+3.0 ± 1.0** (2)"
    assert cells(markdown, "smoothing")[1] == ""  # of 5 images per class there is no run


def test_draws_of_one_data_set_count_once_in_the_error_of_a_recipe(module):
    results = {}
    for images in (5, 10, 20):
        for data_set, gain in (("waste6", 0.06), ("flowers12", 0.0)):
            results |= recipe("today", [0.5, 0.60, 0.6, 0.6], data_set, images=images)
            results |= recipe("light", [0.5, 0.60 + gain, 0.6, 0.6], data_set, images=images)
    markdown = module("recipe_table").recipe_markdown(results)
    assert cells(markdown, "light")[5] == "+3.0 ± 3.0 (6)"  # six pairs, two independent ones


def test_rules_of_choice_look_at_validation_alone(module):
    results = recipe("today", [0.5, 0.6, 0.7, 0.8])
    (row,) = results.values()
    row["test"] = {name: [1.0, 0.1] for name in row["test"]} | {"0.5 end": [0.4, 0.3]}
    recipe_table = module("recipe_table")
    scores = recipe_table.recipe_scores(results).set_index("rule")
    assert scores["chosen"][recipe_table.FINAL] == "0.5 end"
    assert scores["accuracy"][recipe_table.FINAL] == pytest.approx(30)
    assert scores["chosen"][recipe_table.CHOSEN] == "epoch 2"
    details = recipe_table.all_recipe_markdown(results | recipe("light", [0.5, 0.6, 0.7, 0.8]))
    assert cells(details, "waste6") == ["waste6", "10", "2", "1", "10.0", "10.0", "30.0"]


def test_a_gpu_is_beside_the_slower_of_its_limits(module):
    rows = {"everything": {"resnet_ft": 480.0, "bare": 500.0, "step_ms": 66.0, "waiting_ms": 1.0}}
    rows["prediction"] = {"resnet_ft": 900.0, "from files": 400.0, "bare": 1000.0}
    measured = MEASURED | {"arch": "resnet18", "batch_size": 32, "cores": 2, "gpu": "cuda (T4)"}
    bound = measured | {"loader": 800.0, "rows": rows}
    starved = measured | {"loader": 490.0, "rows": rows}
    markdown = module("gpu_table").gpu_markdown({"one": bound})
    row = "cuda (T4): resnet18, batches of 32, 2 cores"
    assert cells(markdown, f"{row}, everything")[1:] == ["480", "500", "800", "0.96", "GPU"]
    assert cells(markdown, f"{row}, prediction")[4] == "0.90"
    markdown = module("gpu_table").gpu_markdown({"one": starved})
    assert cells(markdown, f"{row}, everything")[-2:] == ["0.98", "loader"]
    assert module("gpu_table").gpu_markdown({}) == ""


@pytest.mark.slow
def test_the_loops_of_a_gpu_run_on_a_processor_too(module, photos, monkeypatch):
    measure = module("on_gpu.measure")
    monkeypatch.setattr(measure, "_SECONDS", 0.1)
    monkeypatch.setattr(measure, "_FIRST_STEPS", 1)
    found = measure.measure(photos, "resnet18", 4, 0, image_size=32)
    assert set(found["rows"]) == {"everything", "layer4 and head", "head", "prediction"}
    assert all(row["resnet_ft"] > 0 and row["bare"] > 0 for row in found["rows"].values())
