"""Classes of unequal size: weights for the loss, or epochs that have as many images of each."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from resnet_ft.data.exchange import image_loader, reads_files
from resnet_ft.data.sampling import EpochBatchSampler
from resnet_ft.errors import ParameterError

_FAR = 1_000_003  # epochs: more than any run has, and prime, so that cycles of epochs go on too


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

    An epoch has as many images as before, so those of small classes come several times, varied anew
    each time, and not all of large classes come. Raises ParameterError for another loader.
    """
    plain = loader.batch_sampler
    if not (reads_files(loader) and plain.shuffle):
        raise ParameterError(
            'balanced_loader takes dataloaders["train"] of make_dataloaders, from image files. For '
            "others use torch.utils.data.WeightedRandomSampler; mix what is balanced, not before."
        )
    batches = _BalancedBatchSampler(
        loader.dataset.labels,
        plain.batch_size,
        join_last=plain.join_last,
        slots=plain.slots,
        seed=plain.seed,
    )
    return image_loader(loader.dataset, batches, loader.num_workers)


class _BalancedBatchSampler(EpochBatchSampler):
    """Batches of N sample keys an epoch, N // C or one more of each of the C classes.

    A class's images come in a random order, which is repeated where it is too short: none comes a
    second time before all have come. What comes again is augmented as in a far later epoch.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        *,
        join_last: bool = False,
        slots: int = 1,
        seed: int = 0,
    ):
        super().__init__(
            len(labels), batch_size, shuffle=True, join_last=join_last, slots=slots, seed=seed
        )
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
