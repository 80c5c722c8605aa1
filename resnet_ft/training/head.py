"""fit_head: the best head for what the other layers put out, which are frozen meanwhile.

A head that is one Linear layer is solved (see `features/solver.py`), any other is trained.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader

from resnet_ft import distributed, engine
from resnet_ft.errors import TrainingError
from resnet_ft.evaluation.learning_curve import FEATURES_FILE
from resnet_ft.evaluation.predictions import Predictions, tabulate
from resnet_ft.features.precompute import precompute
from resnet_ft.features.solver import solve_head
from resnet_ft.models.build import head_of, num_outputs
from resnet_ft.models.freezing import kept_trainable
from resnet_ft.training.averaging import validation_scores
from resnet_ft.training.loop import train_model
from resnet_ft.training.run import Run
from resnet_ft.training.state import Row

_EPOCHS = 30  # of a head that has to be trained, on features
_MOST_KEPT = 2**26  # bytes of features in a run: 16,000 images of a ResNet101
_MOST_IN_TABLE = 10**8  # probabilities in head_predictions.csv: about a gigabyte


@dataclass(frozen=True)
class Head:
    """What `fit_head` measured: row 0 of a history, and the predictions of a solved head.

    `predictions` are out of sample: those of an image come from a head that was fitted to other
    images; the row's training columns score them. None for a head that had to be trained.
    """

    row: Row
    predictions: Predictions | None


def fit_head(
    model: nn.Module,
    dataloaders: Mapping[str, DataLoader],
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    class_weights: Tensor | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    run: Run | None = None,
) -> Head:
    """Give the model the best head for what its other layers put out.

    Each image goes through those layers once (see `precompute`; `cache_dir`). A head that is one
    Linear layer is then solved by L-BFGS, its regularisation chosen by five-fold cross-validation;
    any other head is trained. `class_weights` (C,) are those of the solved head's loss, `criterion`
    scores the validation images. A `run` gets the predictions as head_predictions.csv, in which
    `find_label_errors` looks for wrong labels, and, up to 64 MiB, what the head was solved on as
    head_features.safetensors, for `learning_curve`. The same layers are frozen afterwards as
    before.
    Raises ParameterError where the head cannot be cut off, TrainingError for a wrong class count.
    """
    started = time.perf_counter()
    criterion = criterion or nn.CrossEntropyLoss()
    if isinstance(criterion, nn.Module):
        criterion.to(engine.device())
    train: Any = dataloaders["train"].dataset
    (name, head), outputs, classes = head_of(model), num_outputs(model), train.classes
    if outputs != len(classes):  # refused before any image is read
        raise TrainingError(
            f"The model's last layer, {name}, has {outputs} outputs, but there are "
            f"{len(classes)} classes: {', '.join(classes)}. Build the model with num_classes="
            'len(dataloaders["train"].dataset.classes).'
        )
    with kept_trainable(model):
        model.requires_grad_(False)
        head.requires_grad_(True)
        loaders = {split: dataloaders[split] for split in ("train", "val")}
        rest, features = precompute(model, loaders, cache_dir=cache_dir)
        layers = [layer for layer in rest.children() if list(layer.parameters())]
        if len(layers) == 1 and isinstance(layers[0], nn.Linear) and layers[0].bias is not None:
            predictions, penalty = _solve_layer(layers[0], features["train"], class_weights, seed)
            loss, accuracy = predictions.table["loss"].mean(), predictions.accuracy
        else:
            predictions, penalty = None, 0.0
            optimizer = AdamW(rest.parameters(), lr=1e-3, weight_decay=0.01)
            _, history = train_model(rest, features, criterion, optimizer, num_epochs=_EPOCHS)
            by_rank = history.sort_values(["val_accuracy", "val_loss"], ascending=[False, True])
            loss, accuracy = by_rank.iloc[0][["train_loss", "train_accuracy"]]
        validation = validation_scores(rest, features["val"], criterion)
    row = {
        "epoch": 0,
        "train_loss": float(loss),
        "train_accuracy": float(accuracy),
        **validation,
        "learning_rate": float("nan"),
        "seconds": time.perf_counter() - started,
    }
    if distributed.is_main():
        seen = "cross-validated" if predictions else "train"
        print(
            f"head alone  loss {row['train_loss']:.3f} ({seen}), val {row['val_loss']:.3f}"
            f"  accuracy {row['val_accuracy']:.1%}  {row['seconds']:.0f} s"
        )
    if run is not None and predictions is not None:
        _keep_features(run, features, penalty)
        if predictions.probabilities.size <= _MOST_IN_TABLE:
            run.write("head_predictions.csv", predictions.save)
        else:
            print(
                "head_predictions.csv is left out: of so many images and classes it would have "
                "gigabytes. fit_head(...).predictions holds what would be in it."
            )
    return Head(row, predictions)


def _keep_features(run: Run, loaders: Mapping[str, DataLoader], penalty: float) -> None:
    """Write features and labels of each split, and the penalty, unless they are large."""
    tensors = {"penalty": torch.tensor(penalty, dtype=torch.float64)}
    for split, loader in loaders.items():
        dataset: Any = loader.dataset
        tensors[f"{split}_features"], tensors[f"{split}_labels"] = dataset.first_view()
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size <= _MOST_KEPT:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        run.write(FEATURES_FILE, lambda path: save_file(whole, path))
    else:
        limit = f"{size >> 20} MiB, more than {_MOST_KEPT >> 20}"
        print(f"{FEATURES_FILE} is left out: it would have {limit}. There is no learning curve.")


def _solve_layer(
    layer: nn.Linear, loader: DataLoader, class_weights: Tensor | None, seed: int
) -> tuple[Predictions, float]:
    """Fill the layer; return what heads fitted to other images say of each, and the penalty."""
    dataset: Any = loader.dataset
    features, labels = dataset.first_view()
    solved = solve_head(features, labels, layer.out_features, weights=class_weights, seed=seed)
    with torch.no_grad():
        layer.weight.copy_(solved.weight)
        layer.bias.copy_(solved.bias)
    paths = [path for path, _ in dataset.samples]
    found = tabulate(solved.probabilities, solved.losses, labels, dataset.classes, paths)
    return found, solved.penalty
