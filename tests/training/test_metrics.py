"""Metrics, what callbacks see of a step, and gradients on their way to the optimizer."""

import pandas as pd
import pytest
import torch
from conftest import network, tensors
from tiny import FailAt, noise_loaders, train
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from resnet_ft import Autosave, Callback, MixedLoader, ParameterError, train_model


@pytest.fixture
def loaders():
    return noise_loaders()


def is_wrong(logits, labels):
    return logits.argmax(dim=1) != labels


def test_a_metric_gets_a_column_per_phase_with_its_mean_over_samples(loaders):
    _, history = train(loaders, None, metrics={"error": is_wrong})
    assert list(history)[-2:] == ["train_error", "val_error"]
    for phase in ("train", "val"):
        expected = 1 - history[f"{phase}_accuracy"]
        assert history[f"{phase}_error"].tolist() == pytest.approx(expected.tolist())


def test_a_metric_of_torchmetrics_counts_by_itself(loaders):
    accuracy = MulticlassAccuracy(num_classes=2, average="micro")
    _, history = train(loaders, None, metrics={"micro": accuracy})
    for phase in ("train", "val"):
        found, expected = history[f"{phase}_micro"], history[f"{phase}_accuracy"]
        assert found.tolist() == pytest.approx(expected.tolist())


def metrics():
    auroc = MulticlassAUROC(num_classes=2, thresholds=None)  # keeps all logits
    return {"error": is_wrong, "micro": MulticlassAccuracy(2, average="micro"), "auroc": auroc}


@pytest.mark.parametrize("at", [(2, 2), (2, 3)])
def test_metrics_of_a_run_resumed_mid_epoch_are_those_of_an_undisturbed_one(loaders, tmp_path, at):
    _, whole = train(loaders, None, metrics=metrics())
    with pytest.raises(ZeroDivisionError):
        callbacks = [FailAt(*at, ZeroDivisionError()), Autosave(minutes=1e-6)]
        train(loaders, tmp_path / "run", metrics=metrics(), callbacks=callbacks)
    _, history = train(loaders, tmp_path / "run", metrics=metrics())
    pd.testing.assert_frame_equal(
        history.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True
    )


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"mean": lambda logits, labels: is_wrong(logits, labels).float().mean()}, r"shape \(\)"),
        ({"accuracy": is_wrong}, "its own accuracy"),
    ],
)
def test_a_metric_that_would_mislead_is_refused(loaders, metrics, said):
    with pytest.raises(ParameterError, match=said):
        train(loaders, None, metrics=metrics)


class Watch(Callback):
    def __init__(self):
        self.outputs, self.norms = [], []

    def on_before_optimizer_step(self, state):
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        self.norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())

    def on_step_end(self, state):
        self.outputs.append((state.phase, state.output))


def test_a_callback_sees_what_a_step_made_of_its_batch(loaders):
    watch = Watch()
    train(loaders, None, num_epochs=1, callbacks=[watch])
    assert [phase for phase, _ in watch.outputs] == ["train"] * 3 + ["val"] * 2
    assert len(watch.norms) == 3
    for _, output in watch.outputs:
        assert output.images.shape == (len(output.labels), 3, 9, 9)
        assert output.logits.shape == (len(output.labels), 2) and not output.logits.requires_grad
        expected = nn.functional.cross_entropy(output.logits, output.labels)
        assert output.loss.item() == pytest.approx(expected.item())


def test_mixed_labels_reach_callbacks_as_probabilities(loaders):
    watch = Watch()
    mixed = {**loaders, "train": MixedLoader(loaders["train"], 2)}
    train(mixed, None, num_epochs=1, callbacks=[watch])
    assert watch.outputs[0][1].labels.shape == (4, 2)


class Norms(Callback):
    """The gradients that the optimizer uses, by how plain SGD moves the weights."""

    def __init__(self):
        self.moved = []

    def on_step_begin(self, state):
        self.before = torch.cat([p.detach().flatten().clone() for p in state.model.parameters()])

    def on_step_end(self, state):
        if state.phase == "train":
            after = torch.cat([p.detach().flatten() for p in state.model.parameters()])
            self.moved.append((after - self.before).norm().item())


def moves(**options):
    torch.manual_seed(0)
    model, norms, watch = network(), Norms(), Watch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loaders = {phase: DataLoader(tensors(12, 0), batch_size=4) for phase in ("train", "val")}
    train_model(model, loaders, None, optimizer, num_epochs=1, callbacks=[norms, watch], **options)
    return norms.moved, watch.norms


def test_gradients_are_clipped_to_a_norm_after_callbacks_have_seen_them():
    free, norms = moves()
    assert free == pytest.approx(norms, rel=1e-4) and min(free) > 0.05
    clipped, seen = moves(clip_grad_norm=0.01)
    assert clipped == pytest.approx([0.01] * 3, rel=1e-3)
    assert seen[0] == pytest.approx(norms[0])


@pytest.mark.parametrize("value", [0, -1.0])
def test_a_norm_that_is_not_positive_is_refused(loaders, value):
    with pytest.raises(ParameterError, match="clip_grad_norm"):
        train(loaders, None, clip_grad_norm=value)
