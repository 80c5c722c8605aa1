"""A step never waits for a number: on a GPU it would have nothing to do meanwhile."""

import pytest
import torch
from conftest import network, tensors
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from resnet_ft import (
    Autosave,
    Callback,
    LivePlot,
    MixedLoader,
    PerStep,
    TrainingError,
    WeightAverage,
    engine,
    train_model,
)
from resnet_ft.training.state import UnreadLoss


class Reads(TorchDispatchMode):
    """Notes in which steps a tensor became a number."""

    def __init__(self):
        super().__init__()
        self.step, self.found = None, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and self.step:
            self.found.append(self.step)
        return function(*args, **(kwargs or {}))


def reads_of(tmp_path, monkeypatch, *, callbacks=(), mix=None, micro_batches=1):
    """The steps with a read, of a run with all that may be done in one."""

    class First(Callback):
        def on_step_begin(self, state):
            reads.step = (state.phase, state.epoch, state.step)

    class Last(Autosave):
        def on_step_end(self, state):
            super().on_step_end(state)
            reads.step = None

    monkeypatch.setattr("resnet_ft.training.callbacks._SECONDS_BETWEEN_READINGS", 1e9)
    monkeypatch.setattr(engine.accelerator(), "gradient_accumulation_steps", micro_batches)
    model, reads = network(), Reads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train = DataLoader(tensors(22, 0), batch_size=5)
    loaders = {
        "train": MixedLoader(train, 2, mix) if mix else train,
        "val": DataLoader(tensors(9, 1), batch_size=4),
    }
    with reads:
        _, history = train_model(
            model,
            loaders,
            nn.CrossEntropyLoss(torch.tensor([1.0, 2.0])),
            optimizer,
            PerStep(scheduler),
            num_epochs=2,
            metrics={"sure": lambda logits, labels: logits.softmax(1).amax(1)},
            clip_grad_norm=1.0,
            run_dir=tmp_path / "run",
            callbacks=[First(), WeightAverage(), *callbacks, Last()],
        )
    assert len(history) == 2
    return reads.found


@pytest.mark.parametrize("options", [{}, {"mix": "both"}, {"micro_batches": 2}])
def test_no_step_reads_a_number_but_those_that_the_bar_shows(tmp_path, monkeypatch, options):
    found = reads_of(tmp_path, monkeypatch, callbacks=[LivePlot()], **options)
    assert set(found) == {("train", 1, 1)}  # the bar has shown nothing before


def test_a_callback_that_reads_a_number_is_found(tmp_path, monkeypatch):
    class Reading(Callback):
        def on_step_end(self, state):
            state.output.loss.item()

    assert len(set(reads_of(tmp_path, monkeypatch, callbacks=[Reading()]))) == 2 * (5 + 3)


class Late(UnreadLoss):
    """A loss of the processor that is read one step late, as one of a GPU."""

    @classmethod
    def of(cls, loss, place):
        class Copied:
            def synchronize(self):
                """It is here already."""

        return cls(torch.as_tensor(loss).detach(), Copied(), place)


class Diverging(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.steps, self.at = 0, at

    def forward(self, logits, labels):
        self.steps += 1
        loss = nn.functional.cross_entropy(logits, labels)
        return loss * float("nan") if self.steps == self.at else loss


@pytest.mark.parametrize(
    ("at", "place"),
    [
        (3, "train loss became nan in epoch 1, step 3"),
        (5, "train loss became nan in epoch 1, step 5"),  # the last one of a phase
        (8, "val loss became nan in epoch 1, step 3"),
        (11, "train loss became nan in epoch 2, step 3"),
    ],
)
def test_a_loss_that_is_read_late_is_named_by_its_step_and_never_saved(
    tmp_path, monkeypatch, at, place
):
    monkeypatch.setattr("resnet_ft.training.state.UnreadLoss", Late)
    loaders = {
        "train": DataLoader(tensors(22, 0), batch_size=5),
        "val": DataLoader(tensors(9, 1), batch_size=4),
    }
    often = Autosave(minutes=1e-9)  # a save after every step looks at its loss first
    for callbacks in ([], [often]):
        with pytest.raises(TrainingError, match=place):
            train_model(
                network(),
                loaders,
                Diverging(at),
                num_epochs=2,
                run_dir=tmp_path / str(len(callbacks)),
                callbacks=callbacks,
            )
        # What was saved goes on from numbers that are finite.
        _, history = train_model(
            network(),
            loaders,
            Diverging(0),
            num_epochs=2,
            run_dir=tmp_path / str(len(callbacks)),
            callbacks=[Autosave(minutes=1e-9)] if callbacks else [],
        )
        assert history["train_loss"].notna().all()
