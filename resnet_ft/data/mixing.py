"""Training batches of another mixture: MixUp and CutMix, and classes that come equally often."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from resnet_ft.data.batches import EpochBatchSampler, ImageLoader, device_batches
from resnet_ft.data.dataset import ImageDataset, seed_of, seeded
from resnet_ft.errors import ParameterError

_MIXES = {"mixup": (v2.MixUp,), "cutmix": (v2.CutMix,), "both": (v2.MixUp, v2.CutMix)}
_ALPHA = {v2.MixUp: 0.2, v2.CutMix: 1.0}  # of the papers, for ImageNet


class MixedLoader:
    """A training loader whose batches are mixed: images (N, 3, H, W), labels (N, num_classes).

    "mixup" adds two images, weighted (Zhang et al., ICLR 2018); "cutmix" puts a rectangle of one
    into the other (Yun et al., ICCV 2019); "both" does either, batch by batch. Labels, rows of
    probabilities, are mixed in the same shares, drawn from Beta(alpha, alpha): by default alpha is
    0.2 for MixUp and 1 for CutMix. Neighbours in a batch are mixed, so `loader` should shuffle.

    The random draws depend on (seed, epoch, batch) alone. The epoch is that of the loader's
    samplers if they count epochs; otherwise each pass is the next one, or the one given to
    `set_epoch`. Raises ParameterError for an unknown `mix`, an `alpha` that is not positive, or too
    few classes.
    """

    def __init__(
        self,
        loader: DataLoader,
        num_classes: int,
        mix: str = "both",
        *,
        alpha: float | None = None,
        seed: int = 0,
    ) -> None:
        if mix not in _MIXES:
            raise ParameterError(f"mix={mix!r} is unknown. Choose one of {', '.join(_MIXES)}.")
        if alpha is not None and not alpha > 0:
            raise ParameterError(f"alpha={alpha} should be positive: 0.2 mixes little, 1 more.")
        classes = getattr(loader.dataset, "classes", None) or ()
        if len(classes) > num_classes:
            raise ParameterError(
                f"num_classes={num_classes} should be {len(classes)}, as in the data."
            )
        self.loader, self.seed = loader, seed
        self.dataset, self.batch_size = loader.dataset, loader.batch_size
        self.batch_sampler, self.sampler = loader.batch_sampler, loader.sampler
        self.generator = loader.generator
        self.epoch = 0
        self.mix = v2.RandomChoice(
            [kind(alpha=alpha or _ALPHA[kind], num_classes=num_classes) for kind in _MIXES[mix]]
        )

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one of this epoch, if the loader's samplers do not count."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._mixed(self.loader)

    def on_device(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches whose images are mixed on the device; their labels are here."""
        for images, labels in self._mixed(device_batches(self.loader)):
            yield images, labels.pin_memory() if images.is_cuda else labels

    def _mixed(self, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = getattr(self.batch_sampler, "epoch", getattr(self.sampler, "epoch", self.epoch))
        self.epoch = epoch + 1
        first_batch = getattr(self.batch_sampler, "first_batch", 0)
        for step, (images, labels) in enumerate(batches, first_batch):
            with seeded(seed_of("mix", self.seed, epoch, step)):
                mixed = self.mix(images, labels)
            yield mixed


def class_weights(labels: Sequence[int] | np.ndarray | Tensor, num_classes: int) -> Tensor:
    """Weights (num_classes,) for `nn.CrossEntropyLoss(weight=...)`: rare classes count more.

    Inverse to the number of labels of a class, with mean 1 over the labels: scikit-learn's
    "balanced". A class without labels gets 0. Raises ParameterError for labels out of range.
    """
    labels = torch.as_tensor(labels)
    if not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
        raise ParameterError(
            f"labels should be numbers from 0 to {num_classes - 1}, at least one: give "
            "loader.dataset.targets, and as many classes as the model has."
        )
    counts = torch.bincount(labels, minlength=num_classes)
    weights = len(labels) / (counts.count_nonzero() * counts)
    return weights.where(counts > 0, 0.0)


def balanced_loader(loader: DataLoader) -> DataLoader:
    """The training loader of `make_dataloaders`, but with each class equally often in an epoch.

    An epoch has as many images as before: those of small classes come several times, augmented
    differently, and some of large classes are left out. Raises ParameterError for other loaders.
    """
    if (
        isinstance(loader, ImageLoader)
        and isinstance(loader.dataset, ImageDataset)
        and loader.batch_sampler.shuffle
    ):
        batches = _BalancedBatchSampler(loader.dataset.labels, loader.batch_sampler)
        return ImageLoader(loader.dataset, batches, loader.num_workers)
    raise ParameterError(
        'balanced_loader takes dataloaders["train"] of make_dataloaders, from image files. For '
        "others use torch.utils.data.WeightedRandomSampler. Balance before mixing, not after."
    )


_FAR = 1_000_003  # epochs: more than any run has, and prime: no multiple of a cycle of epochs


class _BalancedBatchSampler(EpochBatchSampler):
    """Batches of N sample keys per epoch, N // C or one more of each of the C classes.

    A class's images come in a random order, which is repeated if it is too short: none comes a
    second time before all have come. A repeated image is augmented as in a far later epoch.
    """

    def __init__(self, labels: np.ndarray, plain: EpochBatchSampler) -> None:
        super().__init__(len(labels), plain.batch_size, shuffle=True, seed=plain.seed)
        classes = (np.flatnonzero(labels == label) for label in np.unique(labels))
        self._members = [torch.from_numpy(indices) for indices in classes]

    def _samples(self, epoch: int, generator: torch.Generator) -> Tensor:
        num_classes = len(self._members)
        turns = torch.randperm(num_classes, generator=generator)
        order = torch.randperm(self.num_samples, generator=generator)
        classes = turns[order % num_classes]
        samples = torch.empty(self.num_samples, 2, dtype=torch.long)
        for number, members in enumerate(self._members):
            places = (classes == number).nonzero().squeeze(1)
            draws = torch.arange(len(places))
            mixed = members[torch.randperm(len(members), generator=generator)]
            samples[places, 0] = epoch + _FAR * (draws // len(members))
            samples[places, 1] = mixed[draws % len(members)]
        return samples
