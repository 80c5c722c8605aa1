"""Would more photographs help? The head is solved again on parts of the training images.

On features of the pretrained network: one that was fine-tuned has seen all of these images.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from scipy.optimize import curve_fit

from resnet_ft.errors import RunError
from resnet_ft.features.solver import Solver, empty_predictions, solve_head
from resnet_ft.files import user_path
from resnet_ft.reading import check_finite, reading

FEATURES_FILE = "head_features.safetensors"  # of a run, by `fit_head`
Features = Mapping[str, Any]
_SHARES = (0.12, 0.25, 0.5, 1.0)
_ANEW = 100


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy against training images per class (the mean of all classes).

    `points` has a row per draw: `images` and `accuracy`; `law` is the power law through them, up to
    twice the images, with its 95% band: `images`, `accuracy`, `low` and `high`. `gain` is what
    doubling adds to the accuracy: (expected, low, high), NaN where two sizes or fewer were left.
    """

    points: pd.DataFrame
    law: pd.DataFrame
    gain: tuple[float, float, float]

    @property
    def sentence(self) -> str:
        """What doubling the images would bring, in words."""
        images, (gain, low, high) = self.points["images"].max(), np.multiply(100, self.gain)
        if np.isnan(gain):
            return f"{images:.0f} images per class are too few to tell what more would bring."
        band = f"about {gain:+.1f} points ({low:.1f} to {high:.1f})"
        return f"Doubling to {2 * images:.0f} images per class: {band}."


def pretrained_features(run: str | os.PathLike[str]) -> dict[str, Any]:
    """What the head of a run was solved on: features (N, D) and labels (N,) of "train" and "val".

    "penalty" is that of the head; runs of earlier versions have none. Empty, with a printed
    sentence, where the run kept no features. RunError where they are damaged.
    """
    file = user_path(run) / FEATURES_FILE
    if not file.exists():
        print(f"No learning curve: without pretrained weights a run keeps no {FEATURES_FILE}.")
        return {}
    with reading(file, RunError, "Delete it, or train again in another run_dir."):
        found = load_file(file)
        check_finite(found)
        penalty = {name: one.item() for name, one in found.items() if name == "penalty"}
        splits = {s: (found[f"{s}_features"], found[f"{s}_labels"]) for s in ("train", "val")}
        if any(one.ndim != 2 or len(one) != len(labels) for one, labels in splits.values()):
            raise ValueError("its features and labels do not fit together")
    return splits | penalty


def learning_curve(features: Features, *, draws: int = 10, seed: int = 0) -> LearningCurve:
    """How the accuracy of the head on "val" grows with the images of "train".

    `features` are those of `pretrained_features`. The head is solved on 12, 25, 50 and 100% of each
    class's images, `draws` times for each part, with the penalty that suits all of them (its weight
    grows as images get fewer). The error follows a + b * images ** -c (Hestness et al., "Deep
    learning scaling is predictable, empirically", 2017). Few sizes do not tell the floor a, so the
    law is the mean of the best fit and of the best with a = 0; the band is that of the basic
    bootstrap of both, over draws and validation images. It is about what to expect: a single
    training varies more.
    """
    (inputs, labels), (val_inputs, val_labels) = features["train"], features["val"]
    both, all_labels = torch.cat([inputs, val_inputs]), torch.cat([labels, val_labels])
    classes, held_out = int(all_labels.max()) + 1, torch.arange(len(labels), len(both))
    solver, rng = Solver(both, all_labels, classes, None), np.random.default_rng(seed)
    found, losses = empty_predictions(len(both), classes)
    penalty = features.get("penalty") or solve_head(inputs, labels, classes, seed=seed).penalty
    whole = solver.fit(torch.arange(len(labels)), penalty)  # near which the others are found
    by_class = pd.Series(labels.numpy()).groupby(labels.numpy())
    right: dict[float, np.ndarray] = {}  # by images per class: hits (draws, validation images)
    for share in _SHARES:
        parts = [by_class.sample(frac=share, random_state=rng).index for _ in range(draws)]
        rows = [torch.tensor(part.to_numpy()) for part in (parts if share < 1 else parts[:1])]
        if len(rows[0]) < classes:
            continue
        hits = []
        for one in rows:
            layer = solver.fit(one, penalty * len(labels) / len(one), start=whole)
            solver.predict(layer, held_out, found, losses)
            hits.append((found[held_out].argmax(dim=1) == val_labels).numpy())
        right[len(rows[0]) / classes] = np.array(hits)
    drawn = [(size, one.mean()) for size, hits in right.items() for one in hits]
    points, sizes = pd.DataFrame(drawn, columns=["images", "accuracy"]), np.array([*right])
    if len(sizes) < 3:  # a power law has three numbers
        return LearningCurve(points, pd.DataFrame(), (np.nan, np.nan, np.nan))
    grid = np.unique(np.append(np.geomspace(sizes[0], 2 * sizes[-1], 40), sizes[-1]))
    law, now = _laws(right, grid).mean(axis=0), np.searchsorted(grid, sizes[-1])
    others = np.concatenate([_laws(_drawn_anew(right, rng), grid) for _ in range(_ANEW)])
    low, high = 2 * law - np.quantile(others, [0.975, 0.025], axis=0)
    gain, gains = law[-1] - law[now], others[:, -1] - others[:, now]
    least, most = np.maximum(0, 2 * gain - np.quantile(gains, [0.975, 0.025])).tolist()
    table = pd.DataFrame({"images": grid, "accuracy": law, "low": low, "high": high.clip(max=1)})
    return LearningCurve(points, table, (float(gain), least, most))


def _drawn_anew(right: dict[float, np.ndarray], rng: np.random.Generator) -> dict:
    """The hits of other draws on other validation images, the same ones for all parts."""
    number = next(iter(right.values())).shape[1]
    images = rng.integers(number, size=number)
    return {n: one[rng.integers(len(one), size=len(one))][:, images] for n, one in right.items()}


def _laws(right: dict[float, np.ndarray], at: np.ndarray) -> np.ndarray:
    """The accuracy `at` some sizes: by the law that fits best, and by the best without a floor."""
    sizes, errors = np.array([*right]), np.array([1 - hits.mean() for hits in right.values()])

    def accuracy(images: np.ndarray, floor: float, scale: float, exponent: float) -> np.ndarray:
        return 1 - floor - scale * (images / sizes[-1]) ** -exponent

    laws = []
    for highest in (1.0, 1e-9):
        bounds, start = ((0, 0, 0), (highest, 1, 2)), (highest / 20, errors[-1] / 2, 0.5)
        fitted, _ = curve_fit(accuracy, sizes, 1 - errors, start, bounds=bounds, max_nfev=10_000)
        laws.append(accuracy(at, *fitted))
    return np.array(laws)
