"""Features in place of images: the same samples, in the same batches, of what was computed once."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resnet_ft.data.dataset import ImageDataset, SampleKey


class FeatureDataset(Dataset):
    """(features, label) pairs of an image data set, whose classes, samples and so on it has.

    `views` are arrays (N, ...), one for each view of the images; epoch e sees view e modulo their
    number. `features[i]` is sample i as epoch 0 sees it.
    """

    def __init__(self, images: ImageDataset, views: Sequence[np.ndarray]):
        self.views = views
        self.labels = torch.from_numpy(images.labels)
        for name in ("classes", "samples", "targets", "preprocessing", "fingerprint", "unreadable"):
            setattr(self, name, getattr(images, name))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        features, labels = self.__getitems__([SampleKey(0, i)])
        return features[0], int(labels[0])

    def whole(self) -> tuple[Tensor, Tensor]:
        """All features of the first view, (N, ...) floats, and labels (N,)."""
        return torch.from_numpy(np.array(self.views[0])).float(), self.labels

    def __getitems__(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor]:
        """A whole batch, as DataLoader asks for it."""
        rows = [self.views[key.epoch % len(self.views)][key.index] for key in keys]
        return torch.from_numpy(np.stack(rows)).float(), self.labels[[key.index for key in keys]]


def feature_loader(images: DataLoader, views: Sequence[np.ndarray]) -> DataLoader:
    """A loader that delivers the features of what `images` would deliver, batch for batch."""
    return DataLoader(
        FeatureDataset(images.dataset, views),
        batch_sampler=copy.copy(images.batch_sampler),
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # which nothing draws from: the default one stays untouched
    )


def _as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch
