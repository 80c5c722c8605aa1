import copy
import math

import pytest
import torch
from conftest import tensors
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from resnet_ft.errors import ParameterError
from resnet_ft.evaluation.predictions import predict_logits
from resnet_ft.evaluation.scores import scored_weights
from resnet_ft.models.checkpoint import load_checkpoint
from resnet_ft.training.averaging import WeightAverage
from resnet_ft.training.callbacks import Callback
from resnet_ft.training.loop import train_model


@pytest.fixture
def loaders():
    return {
        "train": DataLoader(tensors(22, 0), batch_size=5),  # five steps per epoch
        "val": DataLoader(tensors(9, 1), batch_size=4),
    }


class Record(Callback):
    """The model's state after every training step, and the average's after every epoch."""

    def __init__(self, average):
        self.average, self.weights, self.averages, self.is_best = average, [], [], []

    def on_step_end(self, state):
        if state.phase == "train":
            self.weights.append(copy.deepcopy(state.model.state_dict()))

    def on_epoch_end(self, state):
        self.averages.append(copy.deepcopy(self.average.average.state_dict()))
        self.is_best.append(state.is_best)


def averaged(weights, decay_at):
    """The definition: w <- d w + (1 - d) p from the first step's p on; buffers are the last."""
    average = {name: tensor.double() for name, tensor in weights[0].items()}
    for steps, current in enumerate(weights[1:], start=1):
        d = decay_at(steps)
        for name, tensor in current.items():
            is_buffer = "running" in name or "num_batches" in name
            average[name] = tensor if is_buffer else d * average[name] + (1 - d) * tensor
    return average


@pytest.mark.parametrize(
    ("decay", "decay_at"),
    [
        (0.9, lambda steps: 0.9),
        (0.0, lambda steps: 0.0),
        # Of 15 steps: 1 - 10 / 15, from the fourth step on above what (1 + t) / (10 + t) allows.
        (None, lambda steps: min(1 / 3, (1 + steps) / (10 + steps))),
    ],
)
def test_the_average_is_what_the_definition_says(loaders, small_network, decay, decay_at):
    record = Record(average := WeightAverage(decay))
    optimizer = torch.optim.Adam(small_network.parameters(), lr=0.05)
    train_model(
        small_network, loaders, optimizer=optimizer, num_epochs=3, callbacks=[average, record]
    )
    assert len(record.weights) == 15
    for name, expected in averaged(record.weights, decay_at).items():
        assert torch.allclose(record.averages[-1][name].double(), expected.double(), atol=1e-6), (
            name
        )


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tensors(22, 0))


def test_the_average_of_a_stream_grows_with_the_steps_made(loaders, small_network):
    loaders["train"] = DataLoader(Stream(), batch_size=5)
    record = Record(average := WeightAverage())
    optimizer = torch.optim.Adam(small_network.parameters(), lr=0.05)
    train_model(
        small_network, loaders, optimizer=optimizer, num_epochs=2, callbacks=[average, record]
    )
    expected = averaged(record.weights, lambda steps: (1 + steps) / (10 + steps))
    for name, tensor in expected.items():
        assert torch.allclose(record.averages[-1][name].double(), tensor.double(), atol=1e-6), name


def test_the_history_has_the_scores_of_a_model_with_the_average_weights(loaders, small_network):
    record = Record(average := WeightAverage(0.8))
    optimizer = torch.optim.Adam(small_network.parameters(), lr=0.05)
    _, history = train_model(
        small_network, loaders, optimizer=optimizer, num_epochs=2, callbacks=[average, record]
    )
    network = copy.deepcopy(small_network)
    for (_, row), weights in zip(history.iterrows(), record.averages, strict=True):
        network.load_state_dict(weights)
        logits, labels = predict_logits(network, loaders["val"])
        assert row["ema_val_loss"] == pytest.approx(
            nn.functional.cross_entropy(logits, labels).item(), rel=1e-6
        )
        assert row["ema_val_accuracy"] == (logits.argmax(1) == labels).sum().item() / 9
    assert history["ema_val_loss"].nunique() == 2


def test_an_average_of_the_last_step_alone_scores_as_the_model_does(loaders, small_network):
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0]))  # means differ by batch
    _, history = train_model(
        small_network, loaders, criterion, num_epochs=2, callbacks=[WeightAverage(0.0)]
    )
    assert history["ema_val_loss"].tolist() == pytest.approx(history["val_loss"].tolist())
    assert history["ema_val_accuracy"].tolist() == history["val_accuracy"].tolist()


def test_averaging_leaves_training_itself_as_it_is(loaders, small_network):
    histories = []
    for callbacks in ([], [WeightAverage()]):
        network = copy.deepcopy(small_network)
        torch.manual_seed(3)  # dropout draws from the default generator
        _, history = train_model(network, loaders, num_epochs=3, callbacks=callbacks)
        histories.append(history)
    for column in ("train_loss", "val_loss"):
        assert histories[0][column].tolist() == histories[1][column].tolist()


class Scripted(nn.Module):
    """One weight w, and the logits (w, 0) whatever the image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        logit = self.weight.expand(len(images))
        return torch.stack([logit, 0 * logit], dim=1)


class SetWeight(Callback):
    """Gives w its value after the training step of each epoch; the learning rate is 0."""

    def __init__(self, values):
        self.values = values

    def on_step_end(self, state):
        if state.phase == "train":
            with torch.no_grad():
                state.model.weight.fill_(self.values[state.epoch - 1])


def scripted_run(model, values, *callbacks, run_dir=None, first_row=None):
    """One step per epoch, with the average at decay 0.5.

    Three of four labels are 0: a positive w is right in three of four, and the loss is lowest where
    the probability is 3/4, at w = ln 3 = 1.1. It is 0.563 at w = 1, 0.576 at 1.5, 1.018 at 4.
    """
    data = TensorDataset(torch.zeros(4, 3, 2, 2), torch.tensor([0, 0, 0, 1]))
    loaders = {phase: DataLoader(data, batch_size=4) for phase in ("train", "val")}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    callbacks = [SetWeight(values), *callbacks]
    return train_model(
        model,
        loaders,
        optimizer=optimizer,
        num_epochs=len(values),
        run_dir=run_dir,
        first_row=first_row,
        callbacks=callbacks,
    )


@pytest.mark.parametrize(
    ("values", "is_best", "kept"),
    [
        ([4.0, -2.0], [True, True], 1.0),  # averages 4, 1: that of epoch 2 has the lower loss
        ([-2.0, 4.0], [True, True], 1.0),  # averages -2, 1: better than the weights beside it
        ([4.0, -2.0, 1.5], [True, True, False], 1.0),  # then 1.25: neither is better
        ([4.0, 1.0, 1.0], [True, True, False], 1.0),  # averages 4, 2.5, 1.75: the weights are best
    ],
)
def test_the_best_of_weights_and_averages_is_kept(values, is_best, kept):
    model, average = Scripted(), WeightAverage(0.5)
    record = Record(average)
    scripted_run(model, values, average, record)
    assert record.is_best == is_best
    assert model.weight.item() == kept


def test_the_average_is_saved_where_it_is_the_best(tmp_path):
    scripted_run(Scripted(), [4.0, -2.0], WeightAverage(0.5), run_dir=tmp_path)
    saved = load_checkpoint(tmp_path / "best.pt")
    assert saved.state_dict["weight"].item() == 1
    loss = 0.75 * math.log(1 + math.exp(-1)) + 0.25 * math.log(1 + math.exp(1))
    assert saved.scores["val_loss"] == pytest.approx(loss)
    assert saved.scores["val_accuracy"] == 0.75


def test_the_full_model_is_saved_with_the_average_of_its_head(tmp_path):
    head = Scripted()
    full_model = nn.Sequential(nn.Linear(4, 3), head)
    object.__setattr__(head, "full_model", full_model)
    scripted_run(head, [4.0, -2.0], WeightAverage(0.5), run_dir=tmp_path)
    saved = load_checkpoint(tmp_path / "best.pt").state_dict
    assert saved["1.weight"].item() == full_model[1].weight.item() == 1
    assert torch.equal(saved["0.weight"], full_model[0].weight)


def test_the_average_resumes_from_its_saved_state():
    first, second = WeightAverage(0.5), WeightAverage(0.5)
    scripted_run(Scripted(), [8.0, 4.0], first)

    class Resume(Callback):
        def on_fit_begin(self, state):
            second.load_state_dict(first.state_dict())

    record = Record(second)
    scripted_run(Scripted(), [2.0], second, Resume(), record)
    assert record.averages[0]["weight"].item() == ((8 + 4) / 2 + 2) / 2


HEAD = {"epoch": 0, "train_loss": 9.0, "train_accuracy": 0.0, "seconds": 1.0}
HEAD |= {"val_loss": 9.0, "val_accuracy": 0.0, "learning_rate": math.nan}


def started_at(weight):
    model = Scripted()
    with torch.no_grad():
        model.weight.fill_(weight)
    return model


def plain_loss(weight):
    logits = torch.tensor([[weight, 0.0]] * 4)
    return nn.functional.cross_entropy(logits, torch.tensor([0, 0, 0, 1])).item()


def test_the_lowest_loss_between_a_scored_start_and_the_average_is_kept(tmp_path):
    model = started_at(4.0)
    _, history = scripted_run(
        model, [8.0, -12.0], WeightAverage(0.5), run_dir=tmp_path, first_row=HEAD
    )
    # The averages are 8 and -2. On the way from 4 to -2 lie 2.5, 1 and -0.5: 1 has the lowest loss.
    between = history.filter(like="between_")
    assert between.head(2).isna().all(axis=None)
    assert between["between_val_loss"][2] == pytest.approx(plain_loss(1.0))
    assert between["between_val_accuracy"][2] == 0.75 and between["between_share"][2] == 0.5
    assert model.weight.item() == 1
    saved = load_checkpoint(tmp_path / "best.pt")
    assert saved.state_dict["weight"].item() == 1
    assert saved.scores["val_loss"] == pytest.approx(plain_loss(1.0))
    kept = scored_weights(history).query("kept").iloc[0]
    assert kept["weights"] == "50% of the way from head to average"


def test_a_scored_start_of_a_lower_loss_is_kept_though_others_are_more_accurate():
    model = started_at(0.9)
    head = {**HEAD, "val_loss": plain_loss(0.9)}  # of an accuracy of 0, as if measured elsewhere
    _, history = scripted_run(model, [5.0], WeightAverage(0.5), first_row=head)
    # Between lie 1.925, 2.95 and 3.975: losses rise from 1.1 on.
    assert model.weight.item() == pytest.approx(0.9)
    assert scored_weights(history)["kept"].tolist() == [True, False, False, False]


def test_a_start_without_a_score_is_no_end_of_a_way(loaders, small_network):
    _, history = train_model(small_network, loaders, num_epochs=1, callbacks=[WeightAverage()])
    assert not any(name.startswith("between") for name in history)


class Stop(Callback):
    """Ends the run in its first step, as a limit of time does."""

    def on_step_end(self, state):
        state.should_stop = True


def test_a_run_that_is_cut_short_looks_between_too():
    model = started_at(4.0)
    _, history = scripted_run(model, [-2.0, 9.0, 9.0], WeightAverage(0.5), Stop(), first_row=HEAD)
    assert len(history) == 2 and model.weight.item() == 1


class Disconnect(Callback):
    def on_epoch_begin(self, state):
        if state.epoch == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_knows_where_it_began(tmp_path):
    whole, resumed = started_at(4.0), started_at(4.0)
    scripted_run(whole, [8.0, -12.0], WeightAverage(0.5), first_row=HEAD)
    assert whole.weight.item() == 1  # halfway from 4 to the average of 8 and -12, -2
    with pytest.raises(KeyboardInterrupt):
        scripted_run(
            *(resumed, [8.0, -12.0], WeightAverage(0.5), Disconnect()),
            run_dir=tmp_path,
            first_row=HEAD,
        )
    again = started_at(8.0)  # as it was when the run ended
    scripted_run(again, [8.0, -12.0], WeightAverage(0.5), run_dir=tmp_path)
    assert again.weight.item() == 1


def test_an_average_that_was_saved_without_a_start_resumes_without_one(tmp_path):
    saved, resumed = WeightAverage(0.5), WeightAverage(0.5)
    scripted_run(started_at(4.0), [8.0], saved)
    assert not any(name.startswith("start.") for name in saved.state_dict())

    class Resume(Callback):
        def on_fit_begin(self, state):
            resumed.load_state_dict(saved.state_dict())

    _, history = scripted_run(started_at(4.0), [-2.0], resumed, Resume(), first_row=HEAD)
    assert "between_val_loss" not in history


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ParameterError, match="decay"):
        WeightAverage(decay)
