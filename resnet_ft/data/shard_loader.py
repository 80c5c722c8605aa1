"""From tar shards, which may lie elsewhere and be larger than the disk, to data loaders."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np

from resnet_ft.data.dataset import SeededDataset
from resnet_ft.data.exchange import ImageLoader, image_loader, slots_for
from resnet_ft.data.resizing import open_resized
from resnet_ft.data.shard_files import ShardFiles
from resnet_ft.data.shard_order import ShardBatchSampler, ShardOrder
from resnet_ft.data.shards import Shard, ShardIndex, read_shard_index
from resnet_ft.data.transforms import describe_preprocessing
from resnet_ft.errors import ImageError

_AHEAD = 2  # shards that are fetched before they are needed


class _ShardDataset(SeededDataset):
    """The samples of one split in shards, decoded whenever they are asked for.

    They are counted through all shards of the split. Their labels are in the shards, and they are
    no files: there are no `samples` and `targets`.
    """

    def __init__(
        self,
        files: ShardFiles,
        index: ShardIndex,
        split: str,
        transform: Callable,
        *,
        order: ShardOrder,
        side: int,
        preprocessing: dict | None = None,
    ):
        super().__init__(
            index.classes,
            transform,
            seed=order.seed,
            preprocessing=preprocessing,
            fingerprint=index.fingerprint,
        )
        self._files, self._shards = files, index.splits[split]
        self._order, self._side = order, side
        self._starts = np.cumsum([0] + [shard.samples for shard in self._shards])
        self._following: tuple[int, dict[int, list[Shard]]] = (-1, {})  # of an epoch

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, epoch: int, index: int) -> tuple[np.ndarray, int]:
        """Sample `index`, its short side at `side` pixels (see `open_resized`), and its label.

        Raises DatasetError for a shard that cannot be read, ImageError for such an image.
        """
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        shard, place = self._shards[number], index - int(self._starts[number])
        content, label = self._files.read(shard, place, self._upcoming(epoch, number))
        try:
            return np.array(open_resized(BytesIO(content), self._side)), label
        except ImageError as error:
            raise ImageError(
                f"{self._files.name(shard, place)}: {error.reason}. Replace the file that it was "
                "made of, or take it out, and pack the data set anew.",
                error.reason,
            ) from error

    def _upcoming(self, epoch: int, number: int) -> list[Shard]:
        """The shards that come next in an epoch."""
        if self._following[0] != epoch:
            order = self._order.shards(epoch)
            shards = [self._shards[i] for i in order]
            next_ones = (shards[i : i + _AHEAD] for i in range(1, len(order) + 1))
            self._following = epoch, dict(zip(order, next_ones, strict=True))
        return self._following[1].get(number, [])


def shard_loaders(
    location: str | Path,
    transforms: dict[str, Callable],
    *,
    side: int,
    batch_size: int,
    num_workers: int,
    cache_dir: str | Path | None = None,
    cache_size_gb: float | None = None,
    seed: int = 0,
) -> dict[str, ImageLoader]:
    """A loader for each split of the shards at a path or address: see `make_dataloaders`.

    `side` is the short side that photographs are decoded to.
    """
    index = read_shard_index(location)
    files = ShardFiles(location, index, cache_dir=cache_dir, cache_size_gb=cache_size_gb)
    described, loaders = describe_preprocessing(transforms["val"]), {}
    for split, shards in index.splits.items():
        counts = [shard.samples for shard in shards]
        order = ShardOrder(counts, shuffle=split == "train", seed=seed)
        dataset = _ShardDataset(
            *(files, index, split, transforms[split]),
            order=order,
            side=side,
            preprocessing=described,
        )
        batches = ShardBatchSampler(order, batch_size, slots=slots_for(num_workers))
        loaders[split] = image_loader(dataset, batches, num_workers)
    return loaders
