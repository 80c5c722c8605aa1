"""What can happen to a run and its files, and what is left then."""

import os
import shutil
import sys
import time
import warnings

import killed
import pytest
import torch
from conftest import tensors
from torch import nn
from torch.utils.data import DataLoader

from resnet_ft import (
    Callback,
    Checkpointer,
    EarlyStop,
    ParameterError,
    Run,
    RunError,
    TrainingError,
    build_model,
    load_checkpoint,
    start_run,
    train_model,
)
from resnet_ft.training.snapshots import read_newest


@pytest.fixture
def loaders():
    return {
        "train": DataLoader(tensors(12, 0), batch_size=4, shuffle=True),
        "val": DataLoader(tensors(6, 1), batch_size=4),
    }


def train(loaders, run_dir, *, num_epochs=3, lr=0.01, **options):
    torch.manual_seed(0)
    model = killed.network()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return train_model(
        model, loaders, optimizer=optimizer, num_epochs=num_epochs, run_dir=run_dir, **options
    )


def saved(folder):
    return Run(folder).snapshot()[1]


def test_a_finished_run_returns_at_once_with_what_it_had(loaders, tmp_path):
    model, history = train(loaders, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    loaders["train"] = None  # nothing is asked of it
    again, same_history = train({**loaders, "train": _Untouched(tensors(12, 0))}, tmp_path / "run")
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    assert same_history.equals(history) and not again.training
    after = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert after.keys() == before.keys()
    assert all(after[path] == before[path] for path in before if path.name.startswith("last"))


class _Untouched(DataLoader):
    def __init__(self, dataset):
        super().__init__(dataset, batch_size=4)

    def __iter__(self):
        raise AssertionError("a finished run reads no images")


def test_more_epochs_continue_a_finished_run(loaders, tmp_path):
    train(loaders, tmp_path / "run", num_epochs=2)
    model, history = train(loaders, tmp_path / "run", num_epochs=5)
    expected, whole = train(loaders, None, num_epochs=5)
    assert history.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))
    assert train(loaders, tmp_path / "run", num_epochs=1)[1].equals(history)


def test_a_run_that_was_stopped_early_is_finished_until_there_are_more_epochs(loaders, tmp_path):
    stop = {"callbacks": [EarlyStop(1, metric="train_loss", min_delta=9)]}
    assert len(train(loaders, tmp_path / "run", **stop)[1]) == 2
    assert len(train(loaders, tmp_path / "run", **stop)[1]) == 2
    assert len(train(loaders, tmp_path / "run", num_epochs=9, **stop)[1]) == 3


def test_other_parameters_are_named_and_refused(loaders, tmp_path):
    train(loaders, tmp_path / "run", num_epochs=1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match=r"optimizer_options.lr was 0.01, now 0.02.*run_name"):
        train(loaders, tmp_path / "run", num_epochs=1, lr=0.02)
    with pytest.raises(RunError, match=r"callbacks \[\], not \['EarlyStop'\]"):
        train(loaders, tmp_path / "run", num_epochs=2, callbacks=[EarlyStop(1)])
    with pytest.raises(RunError, match="already holds a trained run"):
        train(loaders, tmp_path / "run", num_epochs=2, resume=False)
    changed = [path.name for path in before if path.read_bytes() != before[path]]
    assert changed in ([], ["config.json"])  # which notes the number of epochs


def test_a_run_notes_its_parameters_once_and_compares_them_from_then_on(loaders, tmp_path):
    start_run(tmp_path / "run", seed=1, source="photos")
    start_run(tmp_path / "run", seed=2)  # nothing was trained yet
    train(loaders, tmp_path / "run")
    start_run(tmp_path / "run", seed=2, more=["x"])
    with pytest.raises(RunError, match="seed was 2, now 3"):
        start_run(tmp_path / "run", seed=3)
    assert Run(tmp_path / "run").config["source"] == "photos"


def test_a_run_keeps_the_decisions_that_it_was_begun_with(loaders, tmp_path):
    decisions = tmp_path / "decisions.csv"
    decisions.write_text("path,decision\n")
    run = start_run(tmp_path / "run", decisions=decisions)
    train(loaders, run)
    start_run(tmp_path / "run", decisions=decisions)
    decisions.write_text("path,decision\na.jpg,leave out\n")
    with pytest.warns(UserWarning, match="goes on with the decisions"):
        assert start_run(tmp_path / "run", decisions=decisions).decisions.read_text() == (
            "path,decision\n"
        )


def test_training_starts_warm_from_ones_own_best_weights(tmp_path):
    data = tensors(4, 0)
    loaders = {phase: DataLoader(data, batch_size=4) for phase in ("train", "val")}
    model, _ = train_model(
        build_model("resnet18", 2, weights=None), loaders, num_epochs=1, run_dir=tmp_path / "run"
    )
    warm = build_model("resnet18", 2, weights=tmp_path / "run" / "best.pt")
    assert all(map(torch.equal, warm.state_dict().values(), model.state_dict().values()))


class FailAt(Callback):
    def __init__(self, epoch, step, error):
        self.at, self.error = (epoch, step), error

    def on_step_end(self, state):
        if (state.epoch, state.step) == self.at:
            raise self.error


def test_an_exception_leaves_the_last_complete_step(loaders, tmp_path):
    with pytest.raises(ZeroDivisionError):
        train(loaders, tmp_path / "run", callbacks=[FailAt(2, 2, ZeroDivisionError())])
    position = saved(tmp_path / "run")["position"]
    # The step itself is not complete: a callback failed in it, after the weights had moved.
    assert (position["epoch"], position["step"], len(position["rows"])) == (1, 0, 1)
    model, history = train(loaders, tmp_path / "run")
    expected, whole = train(loaders, None)
    assert history.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))


class _Breaking(DataLoader):
    """Delivers two batches of its second pass, then cannot read a file."""

    def __iter__(self):
        self.passes = getattr(self, "passes", 0) + 1
        for number, batch in enumerate(super().__iter__()):
            if (self.passes, number) == (2, 2):
                raise OSError("a file cannot be read")
            yield batch


def test_images_that_cannot_be_read_cost_nothing_of_what_was_done(loaders, tmp_path):
    breaking = {**loaders, "train": _Breaking(tensors(12, 0), batch_size=4, shuffle=True)}
    with pytest.raises(OSError, match="cannot be read"):
        train(breaking, tmp_path / "run")
    position = saved(tmp_path / "run")["position"]
    assert (position["epoch"], position["phase"], position["step"]) == (2, "train", 2)
    _, history = train(loaders, tmp_path / "run")
    _, whole = train(loaders, None)
    assert history.drop(columns="seconds").equals(whole.drop(columns="seconds"))


def test_weights_that_lead_nowhere_are_not_saved(loaders, tmp_path):
    class Spoil(Callback):
        def on_step_end(self, state):
            if state.epoch == 2:
                with torch.no_grad():
                    state.model[0].weight.fill_(torch.nan)

    with pytest.raises(TrainingError, match="loss became nan"):
        train(loaders, tmp_path / "run", callbacks=[Spoil(), Checkpointer(minutes=60)])
    assert all(tensor.isfinite().all() for tensor in saved(tmp_path / "run")["model"].values())


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
        callbacks = [FailAt(3, 1, ZeroDivisionError()), Checkpointer(minutes=1e-6)]
        train(loaders, tmp_path / "run", callbacks=callbacks)
    newest, _, _ = read_newest([tmp_path / "run"])
    damage(newest)
    with pytest.warns(UserWarning, match=rf"{newest.name} cannot be read.*goes on from"):
        model, history = train(loaders, tmp_path / "run")
    assert history.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))
    assert "code ran" not in capsys.readouterr().out


def test_two_damaged_files_stop_a_run_and_nothing_is_overwritten(loaders, tmp_path):
    train(loaders, tmp_path / "run")
    for name in ("last.0.pt", "last.1.pt"):
        (tmp_path / "run" / name).write_bytes(b"something else" * 9)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match=r"last.*cannot be read.*last.*cannot be read.*run_name"):
        train(loaders, tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_the_files_of_another_run_are_not_taken_for_ones_own(loaders, tmp_path):
    for name in ("one", "other"):
        train(loaders, tmp_path / name)
    shutil.copy(tmp_path / "one" / "last.0.pt", tmp_path / "other" / "last.0.pt")
    shutil.copy(tmp_path / "one" / "last.1.pt", tmp_path / "other" / "last.1.pt")
    with pytest.raises(RunError, match=r"of another run"):
        train(loaders, tmp_path / "other")


def test_a_network_of_other_layers_is_refused(loaders, tmp_path):
    train(loaders, tmp_path / "run", num_epochs=1)
    other = nn.Sequential(nn.Flatten(), nn.Linear(243, 1), nn.Linear(1, 7))  # as many weights
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    with pytest.raises(RunError, match="another network"):
        train_model(other, loaders, optimizer=optimizer, num_epochs=2, run_dir=tmp_path / "run")


def test_what_could_not_be_continued_is_refused_before_any_work(loaders, tmp_path):
    class Hoard(Callback):
        def state_dict(self):
            return {"things": [1, {2}]}

    with pytest.raises(ParameterError, match=r"Hoard.things.1 is a set") as raised:
        train(loaders, tmp_path / "run", callbacks=[Hoard()])
    assert len(train(loaders, tmp_path / "run")[1]) == 3  # though `raised` keeps what was begun
    assert raised.value.__traceback__ is not None
    with pytest.raises(ParameterError, match="give run_dir"):
        train(loaders, None, callbacks=[Checkpointer()])


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
    assert any("no folder" in text and "The run goes on" in text for text in texts)
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
    start_run(folder)
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


def test_a_config_that_was_edited_is_refused(loaders, tmp_path):
    start_run(tmp_path / "run", seed=1)
    train(loaders, tmp_path / "run", num_epochs=1)
    Run(tmp_path / "run").record(seed=2)
    with pytest.raises(RunError, match="seed was 1, now 2"):
        train(loaders, tmp_path / "run", num_epochs=2)


def test_an_error_at_the_end_of_an_epoch_moves_no_schedule_twice(loaders, tmp_path):
    class FailOnce(Callback):
        failed = False

        def on_epoch_end(self, state):
            if state.epoch == 2 and not self.failed:
                self.failed = True
                raise ZeroDivisionError

    def run(run_dir, callbacks=()):
        torch.manual_seed(0)
        model = killed.network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return train_model(
            *(model, loaders, None, optimizer, schedule, 3), run_dir=run_dir, callbacks=callbacks
        )[1]

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", [FailOnce()])
    history = run(tmp_path / "run")
    assert history["learning_rate"].tolist() == [1.0, 0.5, 0.25]
    assert history.drop(columns="seconds").equals(run(None).drop(columns="seconds"))


def test_two_processes_do_not_train_the_same_run(loaders, tmp_path):
    class Again(Callback):
        def on_epoch_end(self, state):
            with pytest.raises(RunError, match="trained by another process"):
                train(loaders, tmp_path / "run")

    assert len(train(loaders, tmp_path / "run", callbacks=[Again()])[1]) == 3
    assert len(train(loaders, tmp_path / "run")[1]) == 3


def test_a_run_with_a_function_as_criterion_goes_on(loaders, tmp_path):
    for num_epochs in (1, 2):

        def criterion(logits, labels):
            return nn.functional.cross_entropy(logits, labels)

        _, history = train(loaders, tmp_path / "run", num_epochs=num_epochs, criterion=criterion)
    assert len(history) == 2


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

    train(loaders, tmp_path / "often", callbacks=[Slow(), Checkpointer(minutes=1e-5)])
    train(loaders, tmp_path / "seldom", callbacks=[Slow(), Checkpointer(minutes=60)])
    often, seldom = (Run(tmp_path / name).snapshot()[0] for name in ("often", "seldom"))
    assert seldom <= 4 < often  # at the beginning and after every epoch
