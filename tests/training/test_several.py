"""The same run in one process, in several, and on several machines (all of them this one)."""

import json
import os
import socket
import subprocess
import sys

import pandas as pd
import pytest
import several
import torch
from conftest import ROOT

from resnet_ft import Run, build_model, load_checkpoint, load_run

pytestmark = pytest.mark.slow

COLUMNS = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
EXAMPLES = ROOT / "examples" / "distributed"
TRAIN = ("resnet_ft", "train", "--num_workers=0", "--config")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def run(name, processes=1, check=True, **options):
    """Run a function of several.py; what it said, and its status."""
    arguments = (several.__file__, name, json.dumps(options, default=str))
    launcher = (*TORCHRUN, "--standalone", f"--nproc_per_node={processes}")
    command = (*(launcher if processes > 1 else (sys.executable,)), *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


def assert_the_same(found, expected, tolerance=1e-5):
    for column in COLUMNS:
        assert found.history[column].tolist() == pytest.approx(
            expected.history[column].tolist(), abs=tolerance
        ), column
    weights, others = (load_checkpoint(one.best).state_dict for one in (found, expected))
    for name, tensor in others.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.fixture
def whole(photos, tmp_path):
    """The run in a single process: batches of 4 of 17 images, so the last one has one more."""
    run("loop", photos=photos, run_dir=tmp_path / "one", cache=tmp_path / "cache1")
    return Run(tmp_path / "one")


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_give_the_losses_of_one(count, whole, photos, tmp_path):
    options = {"photos": photos, "run_dir": tmp_path / "some", "cache": tmp_path / "cache"}
    done = run("loop", processes=count, **options)
    assert_the_same(Run(tmp_path / "some"), whole)
    expected = pd.read_csv(tmp_path / "one" / "rank0.csv")
    for rank in range(count):  # all of them know everything, and each image once
        found = pd.read_csv(tmp_path / "some" / f"rank{rank}.csv")
        pd.testing.assert_frame_equal(found, expected, atol=1e-3)
    assert done.stdout.count("epoch  3/3") == 1  # only one of them speaks


@pytest.mark.parametrize("count", [2, 3])  # of 3, one has two images of a batch and others one
def test_gradients_of_parts_are_summed(count, whole, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    options = {"photos": photos, "run_dir": tmp_path / "some", "cache": tmp_path / "cache"}
    run("loop", processes=count, **options)
    assert_the_same(Run(tmp_path / "some"), whole)


@pytest.mark.parametrize("criterion", ["weighted", "sum", "focal"])
def test_processes_share_the_denominator_of_the_criterion(criterion, photos, tmp_path, monkeypatch):
    options = {"photos": photos, "cache": tmp_path / "cache", "criterion": criterion}
    run("loop", run_dir=tmp_path / "one", **options)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    run("loop", processes=2, run_dir=tmp_path / "two", **options)
    assert_the_same(Run(tmp_path / "two"), Run(tmp_path / "one"))


def test_a_criterion_that_cannot_be_shared_is_refused(photos, tmp_path):
    options = {"photos": photos, "cache": tmp_path / "cache", "criterion": "highest"}
    refused = run("loop", processes=2, check=False, run_dir=tmp_path / "two", **options)
    assert "cannot be split into micro-batches or over processes" in refused.stderr


def test_a_process_that_dies_ends_the_run_which_resumes_in_any_number(whole, photos, tmp_path):
    options = {"photos": photos, "run_dir": tmp_path / "some", "cache": tmp_path / "cache"}
    done = run("loop", processes=2, check=False, die_at=(2, 3), **options)
    assert done.returncode != 0
    _, saved = Run(tmp_path / "some").resume_state()
    position = tuple(saved["progress"][name] for name in ("epoch", "phase", "step"))
    assert position in {(2, "train", 2), (1, "train", 0)}
    run("loop", processes=1, check=False, die_at=(3, 2), **options)
    run("loop", processes=2, **options)
    assert_the_same(Run(tmp_path / "some"), whole)


def test_a_run_stopped_mid_validation_resumes_in_two_processes(whole, photos, tmp_path):
    options = {"photos": photos, "run_dir": tmp_path / "some", "cache": tmp_path / "cache"}
    run("loop", check=False, stop_at=(2, 2), **options)
    position = Run(tmp_path / "some").resume_state()[1]["progress"]
    assert tuple(position[name] for name in ("epoch", "phase", "step")) == (2, "val", 1)
    run("loop", processes=2, **options)
    assert_the_same(Run(tmp_path / "some"), whole)


def test_more_processes_than_images_in_a_batch_are_refused(photos, tmp_path):
    options = {"photos": photos, "run_dir": tmp_path / "run", "cache": tmp_path / "cache"}
    refused = run("loop", processes=2, check=False, batch_size=1, **options)
    assert refused.returncode != 0
    assert "batch_size is 1, for 2 processes. Start fewer of them." in refused.stderr
    for path in (photos / "Val").rglob("[12].png"):  # of each class one image is left
        path.unlink()
    refused = run("loop", processes=3, check=False, **options)
    assert "the number of val images is 2, for 3 processes" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_the_recipe_runs_in_several_processes_and_features_are_shared_out(photos, tmp_path):
    options = {"photos": photos, "cache": tmp_path / "cache1"}
    run("recipe", run_dir=tmp_path / "one", **options)
    options["cache"] = tmp_path / "cache2"
    run("recipe", processes=2, run_dir=tmp_path / "two", **options)
    assert_the_same(Run(tmp_path / "two"), Run(tmp_path / "one"), tolerance=1e-3)
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert {"config.json", "history.csv", "best.pt", "head_predictions.csv"} < names
    features = [sorted((tmp_path / f"cache{n}" / "features").glob("*.f16")) for n in (1, 2)]
    for one, two in zip(*features, strict=True):
        assert one.name == two.name
        numbers = [torch.frombuffer(path.read_bytes(), dtype=torch.float16) for path in (one, two)]
        torch.testing.assert_close(*numbers, atol=1e-3, rtol=1e-2)


def test_each_process_sends_its_share_of_the_images_through_the_frozen_layers(photos, tmp_path):
    for count in (1, 2):
        out = tmp_path / str(count)
        out.mkdir()
        run("shares", processes=count, photos=photos, run_dir=out, cache=tmp_path / f"cache{count}")
    (alone,), two = (
        [json.loads(path.read_text()) for path in sorted((tmp_path / name).glob("rank*"))]
        for name in ("1", "2")
    )
    # 17 images to train on and 6 to validate, and 2 that are tried out first.
    assert alone["prepared"] == 25
    assert sorted(one["prepared"] for one in two) == [2 + 11, 2 + 12]
    for one in two:
        assert one["sums"] == pytest.approx(alone["sums"], rel=1e-2)


def test_a_time_budget_is_kept_by_all_processes_alike(photos, tmp_path):
    options = {"photos": photos, "run_dir": tmp_path / "two", "cache": tmp_path / "cache"}
    run("recipe", processes=2, minutes=0.2, **options)
    assert len(Run(tmp_path / "two").history) >= 1


def test_two_machines_train_together(whole, photos, tmp_path):
    port, nodes = free_port(), []
    for node in range(2):
        options = {"photos": photos, "run_dir": tmp_path / "nodes", "cache": tmp_path / f"c{node}"}
        command = (
            *(*TORCHRUN, "--nnodes=2", "--nproc_per_node=1", f"--node_rank={node}"),
            *("--master_addr=127.0.0.1", f"--master_port={port}"),
            *(several.__file__, "loop", json.dumps({name: str(v) for name, v in options.items()})),
        )
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / f"home{node}")}
        nodes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for node in nodes:
        _, said = node.communicate(timeout=300)
        assert node.returncode == 0, said
    assert_the_same(Run(tmp_path / "nodes"), whole)


def test_random_weights_are_refused_by_several_processes_without_gpus(photos, tmp_path):
    """They begin with batch normalisation that learns, for which a processor has no form."""
    config = configured(tmp_path / "run", photos, None)
    refused = start(*TORCHRUN, "--standalone", "--nproc_per_node=2", "-m", *TRAIN, config)
    _, said = refused.communicate(timeout=300)
    assert refused.returncode != 0 and "needs GPUs" in said


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate", "accelerate on two machines"])
def test_a_shell_command_trains_what_a_config_says(launcher, photos, weights, tmp_path):
    """The commands of examples/distributed/, but for their ports and paths."""
    one, config = (configured(tmp_path / name, photos, weights) for name in ("one", "some"))
    alone = start(sys.executable, "-m", *TRAIN, one)
    assert "validation accuracy" in alone.communicate(timeout=300)[0]
    started = [start(*command, config) for command in shell_commands(launcher, tmp_path)]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert_the_same(Run(tmp_path / "some"), Run(tmp_path / "one"), tolerance=1e-3)
    assert load_run(tmp_path / "some").config["fine_tune"]["epochs"] == 1
    again = start(sys.executable, "-m", *TRAIN, config)
    assert "is finished: 1 of 1 epochs" in again.communicate(timeout=300)[1]


@pytest.fixture
def weights(tmp_path):
    torch.save(build_model("resnet18", 2, weights=None).state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def configured(folder, photos, weights):
    """A run that a person wrote a config.json for."""
    folder.mkdir()
    images = {"data_source": photos, "image_size": 32, "batch_size": 4}
    network = {"arch": "resnet18", "weights": weights, "mixed_precision": "no"}
    content = {**images, **network, "fine_tune": {"epochs": 1}}
    (folder / "config.json").write_text(json.dumps(content, default=str))
    return str(folder / "config.json")


def shell_commands(launcher, folder):
    """What is typed on each machine, up to the config."""
    if launcher == "torchrun":
        return [(*TORCHRUN, "--standalone", "--nproc_per_node=2", "-m", *TRAIN)]
    accelerate = (sys.executable, "-m", "accelerate.commands.launch", "--config_file")
    if launcher == "accelerate":
        free = f"--main_process_port={free_port()}"
        return [(*accelerate, str(EXAMPLES / "one_machine.yaml"), free, "-m", *TRAIN)]
    port, commands = free_port(), []
    for machine in range(2):
        text = (EXAMPLES / "several_machines.yaml").read_text()
        changes = {
            "10.0.0.1": "127.0.0.1",
            "29500": str(port),
            "num_processes: 4": "num_processes: 2",
        }
        changes["machine_rank: 0"] = f"machine_rank: {machine}"
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        file = folder / f"machine{machine}.yaml"
        file.write_text(text)
        commands.append((*accelerate, str(file), "-m", *TRAIN))
    return commands


def start(*command):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
