"""Would more photographs help? The head is solved again on parts of the training images.

On the features of the pretrained network: a fine-tuned one has seen all training images, so its
curve would be flat and wrong.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from scipy.optimize import curve_fit
from torch import Tensor

from resnet_ft.errors import RunError
from resnet_ft.features.solver import Solver, empty_predictions, solve_head
from resnet_ft.files import user_path
from resnet_ft.reading import check_finite, reading

FEATURES_FILE = "head_features.safetensors"  # of a run, by `fit_head`
_SHARES = (0.12, 0.25, 0.5, 1.0)
_ANEW = 200
_LEAST_SIZES = 3  # a power law has three numbers


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy against training images per class.

    `points` has a row per draw: `images` (per class, the mean of classes) and `accuracy` on images
    that the head has not seen. `law` is the power law through them, up to twice the images:
    `images`, `accuracy`, and its 95% band `low` and `high`; empty where the sizes are too few.
    `gain` is what doubling the images adds to the accuracy, with its band: (expected, low, high).
    """

    points: pd.DataFrame
    law: pd.DataFrame
    gain: tuple[float, float, float]

    @property
    def sentence(self) -> str:
        """What doubling the number of images would bring, in words."""
        images = self.points["images"].max()
        if self.law.empty:
            return f"{images:.0f} images per class are too few to tell what more would bring."
        gain, low, high = (100 * one for one in self.gain)
        return (
            f"Doubling to {2 * images:.0f} images per class: about {gain:+.1f} points "
            f"({low:.1f} to {high:.1f})."
        )


def pretrained_features(run: str | os.PathLike[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """What the head of a run was solved on: features (N, D) and labels (N,) of "train" and "val".

    Empty, with a printed sentence, where the run kept none. RunError where they are damaged.
    """
    file = user_path(run) / FEATURES_FILE
    if not file.exists():
        print(
            f"There is no {FEATURES_FILE} in this run: the network began with random weights, or "
            "the features were too large to keep. So there is no learning curve."
        )
        return {}
    with reading(file, RunError, "Delete it, or train the run again in another run_dir."):
        tensors = load_file(file)
        check_finite(tensors)
        found = {s: (tensors[f"{s}_features"], tensors[f"{s}_labels"]) for s in ("train", "val")}
        if any(len(one) != len(labels) or one.ndim != 2 for one, labels in found.values()):
            raise ValueError("its features and labels do not fit together")
    return found


def learning_curve(
    features: Mapping[str, tuple[Tensor, Tensor]], *, draws: int = 6, seed: int = 0
) -> LearningCurve:
    """How the accuracy of the head on `features["val"]` grows with the images of "train".

    `features` are those of `pretrained_features`. The head is solved on 12, 25, 50 and 100% of each
    class's images, `draws` times for each part; its penalty is chosen once per part. The error
    follows a + b * images ** -c (Hestness et al., "Deep learning scaling is predictable,
    empirically", 2017); few sizes do not tell the floor a, so the law is the mean of the best fit
    and of the best with a = 0. The band is that of the basic bootstrap, over draws and validation
    images, of both.
    """
    (inputs, labels), (val_inputs, val_labels) = features["train"], features["val"]
    both, all_labels = torch.cat([inputs, val_inputs]), torch.cat([labels, val_labels])
    classes, held_out = int(all_labels.max()) + 1, torch.arange(len(labels), len(both))
    solver, rng = Solver(both, all_labels, classes, None), np.random.default_rng(seed)
    found, losses = empty_predictions(len(both), classes)
    by_class = pd.Series(labels.numpy()).groupby(labels.numpy())
    right: dict[float, np.ndarray] = {}  # by images per class: hits (draws, validation images)
    for share in _SHARES:
        parts = [by_class.sample(frac=share, random_state=rng).index for _ in range(draws)]
        rows = [torch.tensor(part.to_numpy()) for part in (parts if share < 1 else parts[:1])]
        if len(rows[0]) < classes:
            continue
        penalty = solve_head(inputs[rows[0]], labels[rows[0]], classes, seed=seed).penalty
        hits = []
        for one in rows:
            solver.predict(solver.fit(one, penalty), held_out, found, losses)
            hits.append((found[held_out].argmax(dim=1) == val_labels).numpy())
        right[len(rows[0]) / classes] = np.array(hits)
    drawn = [(size, one.mean()) for size, hits in right.items() for one in hits]
    points = pd.DataFrame(drawn, columns=["images", "accuracy"])
    sizes = np.array([*right])
    if len(sizes) < _LEAST_SIZES:
        return LearningCurve(points, pd.DataFrame(), (np.nan, np.nan, np.nan))
    grid = np.unique(np.append(np.geomspace(sizes[0], 2 * sizes[-1], 40), sizes[-1]))
    law = _laws(sizes, right, grid).mean(axis=0)
    others = np.concatenate([_laws(sizes, _drawn_anew(right, rng), grid) for _ in range(_ANEW)])
    low, high = 2 * law - np.quantile(others, [0.975, 0.025], axis=0)
    here = np.searchsorted(grid, sizes[-1])
    gain, gains = law[-1] - law[here], others[:, -1] - others[:, here]
    most, least = np.maximum(0, 2 * gain - np.quantile(gains, [0.025, 0.975]))
    table = pd.DataFrame({"images": grid, "accuracy": law, "low": low, "high": high.clip(max=1)})
    return LearningCurve(points, table, (float(gain), float(least), float(most)))


def _drawn_anew(right: Mapping[float, np.ndarray], rng: np.random.Generator) -> dict:
    """The hits of other draws on other validation images, the same ones for all parts."""
    hits = {size: one[rng.integers(len(one), size=len(one))] for size, one in right.items()}
    number = right[min(right)].shape[1]
    images = rng.integers(number, size=number)
    return {size: one[:, images] for size, one in hits.items()}


def _laws(sizes: np.ndarray, right: Mapping[float, np.ndarray], at: np.ndarray) -> np.ndarray:
    """The accuracy `at` other sizes, by the law that fits best with a floor and by that without."""

    def error(images: np.ndarray, floor: float, scale: float, exponent: float) -> np.ndarray:
        return floor + scale * images**-exponent

    errors, laws = np.array([1 - hits.mean() for hits in right.values()]), []
    for highest in (1.0, 1e-9):
        bounds, start = ((0, 0, 0), (highest, 1, 2)), (highest / 20, errors[-1] / 2, 0.5)
        fitted = curve_fit(error, sizes / sizes[-1], errors, start, bounds=bounds, max_nfev=10_000)
        laws.append(1 - error(at / sizes[-1], *fitted[0]))
    return np.array(laws)
