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
_RESAMPLED = 200
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
    empirically", 2017); the band comes from resampling the draws and the validation images.
    """
    (inputs, labels), (val_inputs, val_labels) = features["train"], features["val"]
    generator = torch.Generator().manual_seed(seed)
    both, train = torch.cat([inputs, val_inputs]), torch.arange(len(labels))
    held_out = torch.arange(len(labels), len(both))
    num_classes = int(torch.cat([labels, val_labels]).max()) + 1
    solver = Solver(both, torch.cat([labels, val_labels]), num_classes, None)
    counts, right = [], []  # of each part: images per class, and hits (draws, validation images)
    for share in _SHARES:
        hits: list[np.ndarray] = []
        for _ in range(draws if share < 1 else 1):
            rows = _drawn(labels, share, generator) if share < 1 else train
            if not hits:
                penalty = solve_head(inputs[rows], labels[rows], num_classes, seed=seed).penalty
            found, losses = empty_predictions(len(both), num_classes)
            solver.predict(solver.fit(rows, penalty), held_out, found, losses)
            hits.append((found[held_out].argmax(dim=1) == val_labels).numpy())
        counts.append(len(rows) / len(labels.unique()))
        right.append(np.array(hits))
    points = pd.DataFrame(
        [(size, one.mean()) for size, hits in zip(counts, right, strict=True) for one in hits],
        columns=["images", "accuracy"],
    )
    sizes = np.array(counts)
    if len(np.unique(sizes)) < _LEAST_SIZES:
        return LearningCurve(points, pd.DataFrame(), (np.nan, np.nan, np.nan))
    grid = np.geomspace(sizes[0], 2 * sizes[-1], 40)
    grid = np.sort(np.append(grid, sizes[-1]))
    law = _law(sizes, np.array([hits.mean() for hits in right]), grid)
    rng = np.random.default_rng(seed)
    laws = np.array([_law(sizes, _resampled(right, rng), grid) for _ in range(_RESAMPLED)])
    low, high = np.minimum(np.quantile(laws, 0.025, 0), law), np.quantile(laws, 0.975, 0)
    table = pd.DataFrame(
        {"images": grid, "accuracy": law, "low": low, "high": np.maximum(high, law)}
    )
    here = int(np.searchsorted(grid, sizes[-1]))
    gain, gains = law[-1] - law[here], laws[:, -1] - laws[:, here]
    band = min(gain, np.quantile(gains, 0.025)), max(gain, np.quantile(gains, 0.975))
    return LearningCurve(points, table, (float(gain), float(band[0]), float(band[1])))


def _drawn(labels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Rows of a part of each class's images, one at least."""
    order = torch.randperm(len(labels), generator=generator)
    of_class = [order[labels[order] == label] for label in labels.unique()]
    return torch.cat([rows[: max(1, round(share * len(rows)))] for rows in of_class])


def _resampled(right: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The accuracy of each part on the same validation images, drawn anew, by draws drawn anew."""
    images = rng.integers(right[0].shape[1], size=right[0].shape[1])
    return np.array([h[rng.integers(len(h), size=len(h))][:, images].mean() for h in right])


def _law(sizes: np.ndarray, accuracies: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The accuracy `at` other sizes, by the power law that fits the errors best."""

    def error(images: np.ndarray, floor: float, scale: float, exponent: float) -> np.ndarray:
        return floor + scale * images**-exponent

    last = 1 - accuracies[-1]
    bounds = (0, 0, 0), (1, 1, 2)
    start = last / 2, last / 2, 0.5
    fitted, _ = curve_fit(
        error, sizes / sizes[-1], 1 - accuracies, start, bounds=bounds, max_nfev=10_000
    )
    return 1 - error(at / sizes[-1], *fitted)
