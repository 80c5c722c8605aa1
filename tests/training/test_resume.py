"""An interrupted run resumes as if nothing had happened, or says why it cannot."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import network, tensors
from tiny import FailAt, noise_loaders, saved, train
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from resnet_ft import (
    Autosave,
    Callback,
    EarlyStop,
    ParameterError,
    PerStep,
    Run,
    RunError,
    TrainingError,
    WeightAverage,
    build_model,
    load_checkpoint,
    train_model,
)


@pytest.fixture
def loaders():
    return noise_loaders()


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
        super().__init__(dataset, batch_size=4, shuffle=True)

    def __iter__(self):
        raise AssertionError("a finished run reads no images")


def test_more_epochs_continue_a_finished_run(loaders, tmp_path):
    train(loaders, tmp_path / "run", num_epochs=2)
    model, history = train(loaders, tmp_path / "run", num_epochs=5)
    expected, whole = train(loaders, None, num_epochs=5)
    assert history.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))
    assert train(loaders, tmp_path / "run", num_epochs=1)[1].equals(history)


def test_a_finished_run_keeps_only_what_more_epochs_need(loaders, tmp_path):
    averages = {"callbacks": [WeightAverage()]}
    train(loaders, tmp_path / "run", num_epochs=2, **averages)
    content = saved(tmp_path / "run")
    assert content["best"]["weights"] == {} and content["best"]["scores"]
    assert len(content["callbacks"]) == 1
    model, _ = train(loaders, tmp_path / "run", num_epochs=2, **averages)
    best = load_checkpoint(tmp_path / "run" / "best.pt").state_dict
    assert all(torch.equal(best[name], one) for name, one in model.state_dict().items())
    assert len(train(loaders, tmp_path / "run", num_epochs=3, **averages)[1]) == 3


def test_more_epochs_need_the_best_model_of_the_run(loaders, tmp_path):
    train(loaders, tmp_path / "run", num_epochs=2)
    train(loaders, tmp_path / "other", num_epochs=1)
    shutil.copy(tmp_path / "other" / "best.pt", tmp_path / "run" / "best.pt")
    with pytest.raises(RunError, match=r"best\.pt .*it is not the best model of this run"):
        train(loaders, tmp_path / "run", num_epochs=3)


def test_a_finished_run_can_do_without_a_resume_state(loaders, tmp_path):
    def run(num_epochs, patience=9):
        stop = EarlyStop(patience, metric="train_loss", min_delta=9)
        saving = Autosave(keep_resume_state=False)
        callbacks = [WeightAverage(), stop, saving]
        return train(loaders, tmp_path / "run", num_epochs=num_epochs, callbacks=callbacks)

    model, history = run(2)
    left = sum(path.stat().st_size for path in (tmp_path / "run").glob("last.*"))
    assert left < 40_000 and "optimizer" not in saved(tmp_path / "run")
    again, same_history = run(2)
    assert same_history.equals(history)
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")}
    with pytest.raises(RunError, match=r"has not kept what more .* weights=\".*best\.pt\""):
        run(3)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_without_a_resume_state_a_more_patient_run_is_refused(loaders, tmp_path):
    def run(patience):
        stop = EarlyStop(patience, metric="train_loss", min_delta=9)
        saving = Autosave(keep_resume_state=False)
        return train(loaders, tmp_path / "run", num_epochs=6, callbacks=[stop, saving])

    assert len(run(1)[1]) == 2
    assert len(run(1)[1]) == 2
    with pytest.raises(RunError, match="has not kept"):
        run(2)


def test_an_interrupted_run_keeps_its_resume_state(loaders, tmp_path):
    saving = Autosave(keep_resume_state=False)
    with pytest.raises(ZeroDivisionError):
        train(loaders, tmp_path / "run", callbacks=[FailAt(3, 1, ZeroDivisionError()), saving])
    model, history = train(loaders, tmp_path / "run", callbacks=[saving])
    expected, whole = train(loaders, None)
    assert history.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))


def test_a_run_that_was_stopped_early_is_finished_until_there_are_more_epochs(loaders, tmp_path):
    stop = {"callbacks": [EarlyStop(1, metric="train_loss", min_delta=9)]}
    assert len(train(loaders, tmp_path / "run", **stop)[1]) == 2
    assert len(train(loaders, tmp_path / "run", **stop)[1]) == 2
    assert len(train(loaders, tmp_path / "run", num_epochs=9, **stop)[1]) == 3


def test_other_parameters_are_named_and_refused(loaders, tmp_path):
    train(loaders, tmp_path / "run", num_epochs=1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match=r"optimizer_options.lr was 0.01, now 0.02.*run_dir"):
        train(loaders, tmp_path / "run", num_epochs=1, lr=0.02)
    with pytest.raises(RunError, match=r"callbacks \[\], not \['EarlyStop'\]"):
        train(loaders, tmp_path / "run", num_epochs=2, callbacks=[EarlyStop(1)])
    with pytest.raises(RunError, match="already holds a trained run"):
        train(loaders, tmp_path / "run", num_epochs=2, resume=False)
    changed = [path.name for path in before if path.read_bytes() != before[path]]
    assert changed in ([], ["config.json"])  # which notes the number of epochs


def test_a_run_notes_its_parameters_once_and_compares_them_from_then_on(loaders, tmp_path):
    Run.open(tmp_path / "run", {"seed": 1, "source": "photos"})
    Run.open(tmp_path / "run", {"seed": 2})  # nothing was trained yet
    train(loaders, tmp_path / "run")
    Run.open(tmp_path / "run", {"seed": 2, "more": ["x"]})
    with pytest.raises(RunError, match="seed was 2, now 3"):
        Run.open(tmp_path / "run", {"seed": 3})
    assert Run(tmp_path / "run").config["source"] == "photos"


def test_a_run_keeps_the_decisions_that_it_was_begun_with(loaders, tmp_path):
    decisions = tmp_path / "decisions.csv"
    decisions.write_text("path,decision\n")
    run = Run.open(tmp_path / "run", decisions=decisions)
    train(loaders, run)
    Run.open(tmp_path / "run", decisions=decisions)
    decisions.write_text("path,decision\na.jpg,leave out\n")
    with pytest.warns(UserWarning, match="resumes with the decisions"):
        assert Run.open(tmp_path / "run", decisions=decisions).decisions.read_text() == (
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


def test_an_exception_leaves_the_last_complete_step(loaders, tmp_path):
    with pytest.raises(ZeroDivisionError):
        train(loaders, tmp_path / "run", callbacks=[FailAt(2, 2, ZeroDivisionError())])
    position = saved(tmp_path / "run")["progress"]
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
    position = saved(tmp_path / "run")["progress"]
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
        train(loaders, tmp_path / "run", callbacks=[Spoil(), Autosave(minutes=60)])
    assert all(tensor.isfinite().all() for tensor in saved(tmp_path / "run")["model"].values())


def test_a_network_of_other_layers_is_refused(loaders, tmp_path):
    train(loaders, tmp_path / "run", num_epochs=1)
    other = nn.Sequential(nn.Flatten(), nn.Linear(243, 1), nn.Linear(1, 7))  # as many weights
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    with pytest.raises(RunError, match="another model"):
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
        train(loaders, None, callbacks=[Autosave()])


def test_a_config_that_was_edited_is_refused(loaders, tmp_path):
    Run.open(tmp_path / "run", {"seed": 1})
    train(loaders, tmp_path / "run", num_epochs=1)
    file = tmp_path / "run" / "config.json"
    file.write_text(file.read_text().replace('"seed": 1', '"seed": 2'))
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
        model = network()
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
            with pytest.raises(RunError, match="Another process"):
                train(loaders, tmp_path / "run")

    assert len(train(loaders, tmp_path / "run", callbacks=[Again()])[1]) == 3
    assert len(train(loaders, tmp_path / "run")[1]) == 3


def test_a_callback_that_begins_with_nothing_gets_its_state_back(loaders, tmp_path):
    class Count(Callback):
        def __init__(self):
            self.seen = {}

        def on_epoch_end(self, state):
            self.seen[f"epoch {state.epoch}"] = True

        def state_dict(self):
            return self.seen

        def load_state_dict(self, saved):
            self.seen = saved

    counts = [Count(), Count()]
    with pytest.raises(ZeroDivisionError):
        train(loaders, tmp_path / "run", callbacks=[counts[0], FailAt(1, 2, ZeroDivisionError())])
    assert counts[0].seen == {}
    train(loaders, tmp_path / "run", num_epochs=1, callbacks=[counts[1]])
    assert len(train(loaders, tmp_path / "run", num_epochs=2, callbacks=[counts[0]])[1]) == 2
    assert list(counts[0].seen) == ["epoch 1", "epoch 2"]


def test_a_run_with_a_function_as_criterion_resumes(loaders, tmp_path):
    for num_epochs in (1, 2):

        def criterion(logits, labels):
            return nn.functional.cross_entropy(logits, labels)

        _, history = train(loaders, tmp_path / "run", num_epochs=num_epochs, criterion=criterion)
    assert len(history) == 2


def test_a_run_that_the_first_version_left_mid_epoch_resumes_to_its_own_end(tmp_path):
    """Its resume state has other names, its schedule was a callback; see first_format/README.md."""
    folder = shutil.copytree(Path(__file__).parent / "first_format", tmp_path / "run")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(3 * 4 * 4, 2)
    )
    generator = torch.Generator().manual_seed(7)
    sets = [
        TensorDataset(torch.randn(n, 3, 4, 4, generator=generator), torch.arange(n) % 2)
        for n in (12, 6)
    ]
    loaders = {"train": DataLoader(sets[0], 3, shuffle=True), "val": DataLoader(sets[1], 3)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = PerStep(LambdaLR(optimizer, lambda step: 0.9**step))
    model, history = train_model(
        *(model, loaders, None, optimizer, scheduler, 3),
        run_dir=folder,
        callbacks=[WeightAverage()],
    )
    # What that version itself gave without an interruption.
    assert history["train_loss"].tolist() == pytest.approx([1.2400916, 0.1422077, 1.0000973])
    assert history["ema_val_loss"].tolist() == pytest.approx([1.1223289, 1.7205323, 2.1035974])
    assert history["learning_rate"].tolist() == pytest.approx([0.1, 0.06561, 0.043046721])
    assert model[2].bias.tolist() == pytest.approx([0.1042969, -0.00201695], abs=1e-6)
