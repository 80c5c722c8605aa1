"""Files that are damaged, disks that are full, a Drive that goes: what is left of a run then."""

import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from unittest.mock import patch

import pytest
import torch
from conftest import ROOT
from tiny import FailAt, noise_loaders, train

from resnet_ft import Autosave, Callback, Run, RunError, load_checkpoint
from resnet_ft.training.storage import read_newest, write_resume_state


@pytest.fixture
def loaders():
    return noise_loaders()


def damage_end(path):
    os.truncate(path, path.stat().st_size - 100)


def damage_middle(path):
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"something else")


def put_code_in(path):
    path.write_bytes(b"\x80\x04c__builtin__\nprint\n(S'code ran'\ntR.")


@pytest.mark.parametrize("damage", [damage_end, damage_middle, put_code_in])
def test_a_damaged_file_is_named_and_the_other_one_counts(damage, loaders, tmp_path, capsys):
    expected, whole = train(loaders, None)
    with pytest.raises(ZeroDivisionError):
        callbacks = [FailAt(3, 1, ZeroDivisionError()), Autosave(minutes=1e-6)]
        train(loaders, tmp_path / "run", callbacks=callbacks)
    newest, _, _ = read_newest([tmp_path / "run"])
    damage(newest)
    with pytest.warns(UserWarning, match=rf"{newest.name} cannot be read.*resumes from"):
        model, history = train(loaders, tmp_path / "run")
    assert history.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))
    assert "code ran" not in capsys.readouterr().out


def test_two_damaged_files_stop_a_run_and_nothing_is_overwritten(loaders, tmp_path):
    train(loaders, tmp_path / "run")
    for name in ("last.0.pt", "last.1.pt"):
        (tmp_path / "run" / name).write_bytes(b"something else" * 9)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match=r"last.*cannot be read.*last.*cannot be read.*run_dir"):
        train(loaders, tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_first_save_that_breaks_off_leaves_nothing_to_be_damaged(tmp_path):
    interrupted = patch.object(os, "fsync", side_effect=KeyboardInterrupt)
    with interrupted, pytest.raises(KeyboardInterrupt):
        write_resume_state(tmp_path / "last.0.pt", 1, {"step": 1})
    assert read_newest([tmp_path]) is None
    write_resume_state(tmp_path / "last.0.pt", 1, {"step": 2})
    assert read_newest([tmp_path]) == (tmp_path / "last.0.pt", 1, {"step": 2})


def test_the_files_of_another_run_are_not_taken_for_ones_own(loaders, tmp_path):
    for name in ("one", "other"):
        train(loaders, tmp_path / name)
    shutil.copy(tmp_path / "one" / "last.0.pt", tmp_path / "other" / "last.0.pt")
    shutil.copy(tmp_path / "one" / "last.1.pt", tmp_path / "other" / "last.1.pt")
    with pytest.raises(RunError, match=r"of another run"):
        train(loaders, tmp_path / "other")


class _Away(Callback):
    """Takes the folder of the run away in an epoch, and may bring it back in another."""

    def __init__(self, folder, back_in=None):
        self.folder, self.hidden, self.back_in = folder, folder.with_name("gone"), back_in

    def on_epoch_begin(self, state):
        if state.epoch == 2:
            self.folder.rename(self.hidden)
        if state.epoch == self.back_in:
            self.hidden.rename(self.folder)


def test_a_drive_that_goes_and_comes_back_costs_nothing(loaders, tmp_path):
    folder = tmp_path / "run"
    with pytest.warns(UserWarning, match="could not be written to"):
        model, _ = train(loaders, folder, num_epochs=5, callbacks=[_Away(folder, back_in=4)])
    assert Run(folder).history["epoch"].tolist() == [1, 2, 3, 4, 5]
    best = load_checkpoint(folder / "best.pt").state_dict
    assert all(torch.equal(best[name], tensor) for name, tensor in model.state_dict().items())
    assert len(train(loaders, folder, num_epochs=5)[1]) == 5


def test_a_drive_that_does_not_come_back_leaves_the_run_on_this_machine(loaders, tmp_path):
    folder = tmp_path / "run"
    with pytest.warns(UserWarning) as caught:
        model, history = train(loaders, folder, callbacks=[_Away(folder)])
    assert not folder.exists()  # or Drive could not be mounted there again
    texts = [str(warning.message) for warning in caught]
    assert any("is gone" in text and "The run continues" in text for text in texts)
    assert "best.pt" in texts[-1] or "history.csv" in texts[-1]
    folder.with_name("gone").rename(folder)  # it is mounted again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, whole = train(loaders, folder)
    assert whole.equals(history) and Run(folder).history["epoch"].tolist() == [1, 2, 3]
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_does_not_end_a_run(loaders, tmp_path):
    folder = tmp_path / "run"
    Run.open(folder)
    for name in ("last.0.pt", "last.1.pt"):
        (folder / name).symlink_to("/dev/full")
    with pytest.warns(UserWarning, match="No space left on device"):
        train(loaders, folder, num_epochs=2)
    assert len(Run(folder).history) == 2
    assert len(train(loaders, folder, num_epochs=2)[1]) == 2  # from what is on this machine


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_saves_that_fail_never_touch_the_last_whole_file(loaders, tmp_path):
    folder = tmp_path / "run"
    train(loaders, folder, num_epochs=1)
    whole, _, _ = read_newest([folder])
    (other,) = {folder / "last.0.pt", folder / "last.1.pt"} - {whole}
    other.unlink(missing_ok=True)
    other.symlink_to("/dev/full")
    before, present = whole.read_bytes(), []

    class Look(Callback):
        def on_epoch_end(self, state):
            present.append(whole.read_bytes())

    with pytest.warns(UserWarning, match="No space left on device"):
        train(loaders, folder, num_epochs=4, callbacks=[Look()])
    assert present == [before] * 3
    assert read_newest([folder])[0] == other  # at the end it was brought from where it was safe
    assert len(train(loaders, folder, num_epochs=4)[1]) == 4


ON_A_SMALL_DISK = """
import resource, sys
from pathlib import Path
import torch
from conftest import ROOT
from tiny import noise_loaders
from torch import nn
from resnet_ft import train_model

model = nn.Sequential(nn.Flatten(), nn.Linear(243, 2))
options = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.01), "run_dir": sys.argv[1]}
loaders = {phase: noise_loaders()["train"] for phase in ("train", "val")}  # it only gets better
train_model(model, loaders, num_epochs=1, **options)
before = Path(sys.argv[1], "best.pt").read_bytes()
most = len(before) // 2  # bytes that a file may have, wherever it is
resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
_, history = train_model(model, loaders, num_epochs=3, **options)
assert len(history) == 3
assert history["val_loss"].is_monotonic_decreasing
assert Path(sys.argv[1], "best.pt").read_bytes() == before
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="only POSIX limits the size of files")
def test_a_run_continues_where_nothing_can_be_saved_anywhere(tmp_path):
    """What PyTorch makes of a full disk is no OSError."""
    command = [sys.executable, "-c", ON_A_SMALL_DISK, tmp_path / "run"]
    options = {"cwd": ROOT / "tests", "capture_output": True, "text": True}
    done = subprocess.run(command, **options, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("best.pt", "last."):
        assert re.search(rf"{name}.*could not be written to .* either .*: make room", done.stderr)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.json", "history.csv", "best.pt", "last.0.pt", "last.1.pt"}


def test_a_run_on_drive_adds_a_few_files_to_its_trash(loaders, tmp_path):
    folder = tmp_path / "MyDrive" / "runs" / "run"
    trash = []

    def note(event, arguments):
        if event in ("os.remove", "os.rename"):
            path = str(arguments[0] if event == "os.remove" else arguments[1])
            if path.startswith(str(folder)) and os.path.exists(path):
                trash.append(os.path.basename(path))

    sys.addaudithook(note)  # it cannot be removed, but later tests have other folders
    train(loaders, folder, num_epochs=25)
    assert len(Run(folder).history) == 25
    assert len(trash) <= 3, trash


def test_a_run_saves_in_the_background_every_few_minutes(loaders, tmp_path):
    class Slow(Callback):
        def on_step_end(self, state):
            time.sleep(0.01)

    train(loaders, tmp_path / "often", callbacks=[Slow(), Autosave(minutes=1e-5)])
    train(loaders, tmp_path / "seldom", callbacks=[Slow(), Autosave(minutes=60)])
    often, seldom = (Run(tmp_path / name).resume_state()[0] for name in ("often", "seldom"))
    assert seldom <= 4 < often  # at the beginning and after every epoch


def away_from_epoch_2(loaders, folder):
    """A run that was interrupted while its Drive was away: its last save is on this machine."""
    with (
        pytest.warns(UserWarning, match="could not be written to"),
        pytest.raises(ZeroDivisionError),
    ):
        callbacks = [_Away(folder), FailAt(4, 1, ZeroDivisionError())]
        train(loaders, folder, num_epochs=4, callbacks=callbacks)
    folder.with_name("gone").rename(folder)


def test_a_run_that_is_renamed_while_its_last_save_is_on_this_machine_finds_it(loaders, tmp_path):
    away_from_epoch_2(loaders, tmp_path / "run")
    _, whole = train(loaders, None, num_epochs=4)
    (tmp_path / "run").rename(tmp_path / "renamed")
    _, history = train(loaders, tmp_path / "renamed", num_epochs=4)
    assert history.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    assert not any((tmp_path / "run").parent.glob("run"))


def test_a_copy_does_not_take_the_save_of_the_other_but_mentions_it(loaders, tmp_path):
    away_from_epoch_2(loaders, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copies" / "run")
    with pytest.warns(UserWarning, match=r"is a copy of the run in .*copies.*a newer save"):
        train(loaders, tmp_path / "copies" / "run", num_epochs=4)
    _, history = train(loaders, tmp_path / "run", num_epochs=4)
    assert history["epoch"].tolist() == [1, 2, 3, 4]


def test_copies_of_a_run_are_trained_at_the_same_time_but_not_one_folder_twice(loaders, tmp_path):
    train(loaders, tmp_path / "run", num_epochs=1)
    copy = shutil.copytree(tmp_path / "run", tmp_path / "copies" / "run")
    with Run(tmp_path / "run").storage.locked():
        assert len(train(loaders, copy, num_epochs=2)[1]) == 2
        (tmp_path / "link").symlink_to(tmp_path / "run")
        with pytest.raises(RunError, match="Another process of this machine"):
            train(loaders, tmp_path / "link", num_epochs=2)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_folder_that_cannot_be_written_is_named_before_any_work(loaders, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"config\.json cannot be written .*choose a run_dir"):
        train(loaders, tmp_path / "file" / "run")
    train(loaders, tmp_path / "run", num_epochs=1)
    config = (tmp_path / "run" / "config.json").read_bytes()
    # As on a read-only disk, also for root: the temporary file cannot be made.
    (tmp_path / "run" / f".config.json.{os.getpid()}.tmp").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        train(loaders, tmp_path / "run", num_epochs=2)
    assert (tmp_path / "run" / "config.json").read_bytes() == config
