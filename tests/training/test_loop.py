import copy
import math
import subprocess
import sys

import pandas as pd
import pytest
import torch
from conftest import tensors
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision import datasets, models, transforms

from resnet_ft import (
    Callback,
    ParameterError,
    TrainingError,
    freeze,
    load_checkpoint,
    make_dataloaders,
    train_model,
)


@pytest.fixture
def loaders():
    generator = torch.Generator().manual_seed(1)
    train = DataLoader(tensors(22, 0), batch_size=5, shuffle=True, generator=generator)
    return {"train": train, "val": DataLoader(tensors(9, 1), batch_size=4)}


def plain_loop(model, loaders, optimizer, scheduler, num_epochs):
    """The loop of the PyTorch transfer-learning tutorial, written out."""
    rows, best, best_rank = [], None, (-1.0, 0.0)
    for _ in range(num_epochs):
        row = {"learning_rate": optimizer.param_groups[0]["lr"]}
        for phase in ("train", "val"):
            model.train(phase == "train")
            running_loss = running_correct = 0
            for images, labels in loaders[phase]:
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    logits = model(images)
                    loss = nn.functional.cross_entropy(logits, labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                running_loss += loss.item() * images.size(0)
                running_correct += (logits.argmax(1) == labels).sum().item()
            row[f"{phase}_loss"] = running_loss / len(loaders[phase].dataset)
            row[f"{phase}_accuracy"] = running_correct / len(loaders[phase].dataset)
        scheduler.step()
        rows.append(row)
        rank = (row["val_accuracy"], -row["val_loss"])
        if rank > best_rank:
            best, best_rank = copy.deepcopy(model.state_dict()), rank
    model.load_state_dict(best)
    return model, pd.DataFrame(rows)


def test_training_equals_a_plain_loop_to_the_last_bit(loaders, small_network):
    other, other_loaders = copy.deepcopy(small_network), copy.deepcopy(loaders)
    optimizer = torch.optim.Adam(small_network.parameters(), lr=0.02)
    torch.manual_seed(5)  # dropout draws from the default generator
    model, history = train_model(
        small_network, loaders, nn.CrossEntropyLoss(), optimizer, StepLR(optimizer, 2, 0.3), 4
    )
    optimizer = torch.optim.Adam(other.parameters(), lr=0.02)
    torch.manual_seed(5)
    expected, rows = plain_loop(other, other_loaders, optimizer, StepLR(optimizer, 2, 0.3), 4)
    for column in rows:
        assert history[column].tolist() == rows[column].tolist(), column
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_the_history_has_a_row_an_epoch_with_the_promised_columns(loaders, small_network):
    _, history = train_model(small_network, loaders, num_epochs=3)
    assert list(history) == [
        *("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
        *("learning_rate", "seconds"),
    ]
    assert history["epoch"].tolist() == [1, 2, 3]
    assert (history["learning_rate"] == 1e-4).all()
    assert (history["seconds"] > 0).all()


class Scripted(nn.Module):
    """Gives validation logits as a test wants them, epoch by epoch; its weight counts the steps."""

    def __init__(self, logits):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.logits, self.epoch = logits, -2  # the first call is a trial before the training

    def forward(self, images):
        if self.training:
            return torch.stack([self.weight, -self.weight], dim=1).expand(len(images), 2) * 0 + 1
        self.epoch += 1
        return torch.tensor(self.logits[self.epoch]).expand(len(images), 2)


class CountEpochs(Callback):
    def on_epoch_end(self, state):
        with torch.no_grad():
            state.model.weight += 1


@pytest.mark.parametrize(
    ("logits", "best"),
    [
        ([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], 2),  # epoch 2 alone is right
        ([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]], 2),  # all right, epoch 2 has the lowest loss
        ([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], 1),  # a full tie keeps the first
    ],
)
def test_the_best_epoch_is_kept_ties_by_lower_loss(logits, best):
    data = TensorDataset(torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.long))
    loaders = {phase: DataLoader(data, batch_size=4) for phase in ("train", "val")}
    model = Scripted(logits)
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    train_model(model, loaders, optimizer=frozen, num_epochs=3, callbacks=[CountEpochs()])
    assert model.weight.item() == best - 1  # it is counted up after each epoch was judged
    assert not model.training


def test_losses_are_weighted_by_sample_and_not_by_batch():
    images = torch.tensor([0.0, 0.0, 4.0])[:, None, None, None].expand(3, 2, 1, 1)
    data = TensorDataset(images * torch.tensor([1.0, 0.0])[:, None, None], torch.ones(3).long())
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))
        model[1].bias.zero_()
    loaders = {phase: DataLoader(data, batch_size=2) for phase in ("train", "val")}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _, history = train_model(model, loaders, optimizer=optimizer, num_epochs=1)
    # Two samples with logits (0, 0) lose ln 2, the third with (4, 0) loses ln(e^4 + 1).
    mean = (2 * math.log(2) + math.log(math.exp(4) + 1)) / 3
    assert history["train_loss"][0] == pytest.approx(mean, rel=1e-6)
    assert history["val_loss"][0] == pytest.approx(mean, rel=1e-6)


def test_a_plateau_scheduler_gets_the_validation_loss(loaders, small_network):
    optimizer = torch.optim.SGD(small_network[6].parameters(), lr=1e-30)  # nothing can improve
    for module in small_network[:6].parameters():
        module.requires_grad = False
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0, eps=0)
    _, history = train_model(small_network, loaders, None, optimizer, scheduler, 3)
    assert history["val_loss"].nunique() == 1
    assert history["learning_rate"].tolist() == [1e-30, 1e-30, 5e-31]


def test_frozen_layers_do_not_change_at_all(loaders, small_network):
    freeze(small_network, until="6")
    before = copy.deepcopy(small_network.state_dict())
    optimizer = torch.optim.Adam(small_network[6].parameters(), lr=0.1)
    train_model(small_network, loaders, optimizer=optimizer, num_epochs=2)
    changed = {
        name
        for name, tensor in small_network.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"6.weight", "6.bias"}


def test_the_same_run_gives_the_same_numbers_whatever_the_number_of_workers(photos, small_network):
    results = []
    for workers in (0, 2):
        model = copy.deepcopy(small_network)
        loaders = make_dataloaders(photos, image_size=12, batch_size=5, num_workers=workers)
        torch.manual_seed(3)
        _, history = train_model(model, loaders, num_epochs=2)
        results.append((model.state_dict(), history.drop(columns="seconds")))
    pd.testing.assert_frame_equal(results[0][1], results[1][1], check_exact=True)
    for name, tensor in results[0][0].items():
        assert torch.equal(tensor, results[1][0][name])


class PoisonAfter(Callback):
    """Makes the network answer with infinities from an epoch on."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, state):
        if state.epoch == self.epoch:
            self.best = copy.deepcopy(state.model.state_dict())
            with torch.no_grad():
                state.model[6].weight.fill_(float("inf"))


def test_a_loss_that_is_not_finite_stops_with_the_best_weights(loaders, small_network, tmp_path):
    poison = PoisonAfter(1)
    with pytest.raises(TrainingError, match=r"epoch 2, step 1.*learning rate ten times lower"):
        train_model(small_network, loaders, num_epochs=3, run_dir=tmp_path, callbacks=[poison])
    assert torch.equal(small_network[6].weight, poison.best["6.weight"])
    saved = load_checkpoint(tmp_path / "best.pt").state_dict
    assert torch.equal(saved["6.weight"], poison.best["6.weight"])
    assert len(pd.read_csv(tmp_path / "history.csv")) == 1


class Interrupt(Callback):
    ended = False

    def on_epoch_end(self, state):
        self.after_first_epoch = copy.deepcopy(state.model.state_dict())

    def on_step_end(self, state):
        if (state.epoch, state.phase, state.step) == (2, "train", 2):
            raise KeyboardInterrupt

    def on_fit_end(self, state):
        self.ended = True


def test_an_interrupted_run_leaves_the_best_weights_and_ends_its_callbacks(loaders, small_network):
    interrupt = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        train_model(small_network, loaders, num_epochs=3, callbacks=[interrupt])
    assert interrupt.ended
    assert not small_network.training
    for name, tensor in small_network.state_dict().items():
        assert torch.equal(tensor, interrupt.after_first_epoch[name])


class Record(Callback):
    def __init__(self):
        self.events = []

    def on_fit_begin(self, state):
        self.events.append("fit")

    def on_phase_begin(self, state):
        self.events.append(f"{state.phase} {state.epoch}")

    def on_step_end(self, state):
        self.events.append(state.step)

    def on_epoch_end(self, state):
        self.events.append(f"best {state.is_best}")

    def on_fit_end(self, state):
        self.events.append("end")


def test_callbacks_are_told_what_happens_in_order(loaders, small_network):
    record = Record()
    train_model(small_network, loaders, num_epochs=1, callbacks=[record])
    assert record.events == ["fit", "train 1", 1, 2, 3, 4, 5, "val 1", 1, 2, 3, "best True", "end"]


def test_class_weights_and_other_criteria_are_used(loaders, small_network):
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.5]), label_smoothing=0.1)
    _, weighted = train_model(copy.deepcopy(small_network), loaders, criterion, num_epochs=1)
    _, plain = train_model(small_network, loaders, num_epochs=1)
    assert weighted["val_loss"][0] != plain["val_loss"][0]


def test_labels_without_an_output_are_an_error_that_names_the_remedy(loaders):
    model = nn.Sequential(nn.Flatten(), nn.Linear(243, 1))
    with pytest.raises(TrainingError, match=r"label 1.*num_classes"):
        train_model(model, loaders, num_epochs=1)


def test_a_model_in_which_nothing_trains_is_refused(loaders, small_network):
    for parameter in small_network.parameters():
        parameter.requires_grad = False
    optimizer = torch.optim.Adam(small_network.parameters())
    with pytest.raises(TrainingError, match="Every layer is frozen"):
        train_model(small_network, loaders, optimizer=optimizer, num_epochs=1)
    with pytest.raises(TrainingError, match="Every layer is frozen"):
        train_model(small_network, loaders, num_epochs=1)


def test_an_optimizer_of_another_model_is_refused(loaders, small_network):
    optimizer = torch.optim.Adam(copy.deepcopy(small_network).parameters())
    with pytest.raises(TrainingError, match="none of the layers that train"):
        train_model(small_network, loaders, optimizer=optimizer, num_epochs=1)


def test_no_epochs_leave_the_weights_and_an_empty_history(loaders, small_network):
    before = copy.deepcopy(small_network.state_dict())
    model, history = train_model(small_network, loaders, num_epochs=0)
    assert history.empty and not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("num_epochs", [-1, 2.5])
def test_a_number_of_epochs_that_is_none_is_refused(loaders, small_network, num_epochs):
    with pytest.raises(ParameterError, match="num_epochs"):
        train_model(small_network, loaders, num_epochs=num_epochs)


def test_train_and_val_must_mean_the_same_classes(loaders, small_network):
    loaders["train"].dataset.classes = ["a", "b"]
    loaders["val"].dataset.classes = ["b", "a"]
    with pytest.raises(TrainingError, match="differ"):
        train_model(small_network, loaders, num_epochs=1)


def test_a_loader_that_delivers_nothing_is_named(loaders, small_network):
    loaders["train"] = DataLoader(tensors(3, 0), batch_size=4, drop_last=True)
    with pytest.raises(TrainingError, match="train loader yields no batch"):
        train_model(small_network, loaders, num_epochs=1)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tensors(6, 0))


def test_streams_and_plain_functions_will_do(loaders, small_network, tmp_path):
    loaders["train"] = DataLoader(Stream(), batch_size=3)
    _, history = train_model(
        small_network, loaders, nn.functional.cross_entropy, num_epochs=1, run_dir=tmp_path
    )
    assert history["train_loss"].notna().all()


def test_a_compiled_network_comes_back_unwrapped(loaders, small_network):
    wrapped = torch.compile(small_network, backend="eager")
    model, _ = train_model(wrapped, loaders, num_epochs=1)
    assert model is small_network


@pytest.mark.slow
def test_mixed_precision_is_on_in_a_second_run_too():
    """bfloat16 on a processor stands for a GPU here, in a process of its own."""
    code = """
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision import datasets, models, transforms
from resnet_ft import engine, train_model

engine._suitable_precision = lambda: "bf16"
data = TensorDataset(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
loaders = {phase: DataLoader(data, batch_size=2) for phase in ("train", "val")}
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
seen = []
model[0].register_forward_hook(lambda module, inputs, output: seen.append(str(output.dtype)))
forward = model.forward
for _ in range(2):
    train_model(model, loaders, num_epochs=1)
    print(set(seen), "forward" in model.__dict__)
    seen.clear()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    assert lines == ["{'torch.bfloat16'} False"] * 2


def test_a_missing_loader_is_named(loaders, small_network):
    with pytest.raises(ParameterError, match="lacks val"):
        train_model(small_network, {"train": loaders["train"]}, num_epochs=1)


def test_the_keys_of_the_loaders_may_be_written_in_any_case(loaders, small_network):
    written = {"Train": loaders["train"], "VAL": loaders["val"]}
    _, history = train_model(small_network, written, num_epochs=1)
    assert len(history) == 1


def test_a_criterion_in_second_place_is_told_the_right_call(loaders, small_network):
    optimizer = torch.optim.SGD(small_network.parameters(), lr=0.1)
    with pytest.raises(ParameterError, match=r"train_model\(model, dataloaders, criterion"):
        train_model(small_network, torch.nn.CrossEntropyLoss(), optimizer)


# What the transfer-learning tutorial of PyTorch has its readers write, with two edits: the loaders
# as second argument, and `model, history =` on the left.
TUTORIAL = """
model_ft = models.resnet18(weights=None)
num_ftrs = model_ft.fc.in_features
model_ft.fc = nn.Linear(num_ftrs, 2)
criterion = nn.CrossEntropyLoss()
optimizer_ft = optim.SGD(model_ft.parameters(), lr=0.001, momentum=0.9)
exp_lr_scheduler = lr_scheduler.StepLR(optimizer_ft, step_size=7, gamma=0.1)
model_ft, history = train_model(
    model_ft, dataloaders, criterion, optimizer_ft, exp_lr_scheduler, num_epochs=2
)

model_conv = models.resnet18(weights=None)
for param in model_conv.parameters():
    param.requires_grad = False
num_ftrs = model_conv.fc.in_features
model_conv.fc = nn.Linear(num_ftrs, 2)
optimizer_conv = optim.SGD(model_conv.fc.parameters(), lr=0.001, momentum=0.9)
exp_lr_scheduler = lr_scheduler.StepLR(optimizer_conv, step_size=7, gamma=0.1)
model_conv, frozen_history = train_model(
    model_conv, dataloaders, criterion, optimizer_conv, exp_lr_scheduler, num_epochs=2
)
"""


def test_the_code_of_pytorchs_tutorial_runs_with_two_edits(photos):
    steps = [transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()]
    data_transforms = transforms.Compose(steps)
    image_datasets = {
        x: datasets.ImageFolder(photos / x.capitalize(), data_transforms) for x in ("train", "val")
    }
    dataloaders = {
        x: DataLoader(image_datasets[x], batch_size=5, shuffle=True) for x in ("train", "val")
    }
    names = {"nn": torch.nn, "optim": torch.optim, "lr_scheduler": torch.optim.lr_scheduler}
    names |= {"models": models, "dataloaders": dataloaders, "train_model": train_model}
    exec(TUTORIAL, names)
    for history in (names["history"], names["frozen_history"]):
        assert history["epoch"].tolist() == [1, 2]
    assert names["model_ft"].classes == ["blue", "red"]


@pytest.mark.slow  # the compiler takes half a minute
def test_a_model_that_is_compiled_learns_the_same(small_network):
    small_network[5] = nn.Identity()  # dropout draws other numbers when it is compiled
    other = copy.deepcopy(small_network)
    loaders = {"train": DataLoader(tensors(20, 0), batch_size=5)}
    loaders["val"] = DataLoader(tensors(10, 1), batch_size=5)
    expected, history = train_model(small_network, loaders, num_epochs=2)
    found, again = train_model(other, loaders, num_epochs=2, compile_model=True)
    assert found is other and not hasattr(found, "_orig_mod")
    assert again["train_loss"].tolist() == pytest.approx(history["train_loss"].tolist(), rel=1e-4)
    torch.testing.assert_close(found[6].weight, expected[6].weight, rtol=1e-3, atol=1e-4)


def test_where_nothing_can_be_compiled_a_warning_says_so(loaders, small_network, monkeypatch):
    def fails(module):
        raise RuntimeError("no compiler was found\nbecause")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.warns(UserWarning, match="does nothing here.*no compiler was found$"):
        train_model(small_network, loaders, num_epochs=1, compile_model=True)
