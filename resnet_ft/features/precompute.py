"""precompute: the frozen part of a model runs once, and the rest trains on its outputs."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from resnet_ft import distributed, engine
from resnet_ft.data.batches import EpochBatchSampler, ImageLoader
from resnet_ft.data.dataset import ImageDataset
from resnet_ft.errors import ParameterError, TrainingError
from resnet_ft.features import store
from resnet_ft.files import default_cache_dir, fingerprint, user_path
from resnet_ft.models.check import check_model
from resnet_ft.models.checkpoint import weights_digest
from resnet_ft.models.cutting import cut_frozen, fold_batchnorm
from resnet_ft.models.freezing import evaluation_mode
from resnet_ft.notebook import progress_bar

_FORMAT = 1  # increase it with any change to how features are computed
_DESCRIBED = ("torchvision.transforms", "resnet_ft.data.transforms")  # completely, by their repr


class HalfPrecisionError(TrainingError):
    """Outputs of the frozen layers are too large for half precision, or not numbers."""


def precompute(
    model: nn.Module,
    dataloaders: dict[str, DataLoader],
    *,
    cache_dir: str | Path | None = None,
    cache_size_gb: float | None = None,
    views: int = 1,
) -> tuple[nn.Module, dict[str, DataLoader]]:
    """Run the frozen part of `model` once over all images; returns `(head, dataloaders)`.

    `head` is made of the model's own layers, so `train_model(head, ...)` trains the model, which is
    `head.full_model` and what is saved. The new loaders yield the outputs of the frozen part, float
    (N, ...), with labels (N,), batch for batch as `dataloaders`, which `make_dataloaders` made.
    `views=1`: training images are seen as in evaluation. With more, they are augmented, and epoch e
    sees view e modulo `views`, where view v is what `dataloaders["train"]` delivers in epoch v.

    `cache_dir` (default: the user's cache folder) keeps features in half precision, under a key of
    weights, transform and files. They take at most `cache_size_gb` GiB (default: half of what the
    disk has); the least recently used are deleted first. Each of several processes computes its
    share. Raises ParameterError for a model that cannot be cut where it is frozen, TrainingError
    without enough room.
    """
    if views < 1:
        raise ParameterError(f"views={views} should be 1, the evaluation view, or more.")
    sources = {
        split: (loader, loader.dataset)
        for split, loader in dataloaders.items()
        if isinstance(loader, ImageLoader) and isinstance(loader.dataset, ImageDataset)
    }
    if len(sources) < len(dataloaders):
        raise ParameterError(
            "precompute keeps features by image file, so it needs loaders that make_dataloaders "
            "makes of image files. With others, also of shards, train the model with train_model."
        )
    check_model(model, dataloaders["train"])
    frozen, head = cut_frozen(model)
    directory = store.writable(user_path(cache_dir or default_cache_dir() / "features"))
    every_view = list(_views(sources, views, weights_digest(frozen), directory))
    writes = distributed.is_first_in(directory)
    lock = FileLock(directory / "features.lock") if writes else nullcontext()
    with store.writing_to(directory), lock:
        if writes:
            _forget_mismatches(every_view, model, head)
        distributed.wait()
        missing = [view for view in every_view if distributed.any_of_all(view.file.find() is None)]
        if missing:
            folded, shape = _folded_copy(frozen, head, model, missing[0].first_images(2))
            if writes:
                in_use = {view.file.key for view in every_view}
                store.make_room([view.file for view in missing], shape, cache_size_gb, in_use)
            total = sum(len(view.dataset) for view in missing)
            with progress_bar(None, "Running the frozen layers", total) as progress:
                for view in missing:
                    _run_frozen(folded, view, shape, writes=writes, progress=progress)
        stored = _stored(every_view)
    loaders = {}
    for split, source in sources.items():
        arrays = [array for view, array in stored if view.split == split]
        loaders[split] = store.feature_loader(*source, arrays)
    return head, loaders


@dataclass(frozen=True)
class _View:
    """The images of one split as one epoch sees them, and the file for their features."""

    split: str
    epoch: int
    loader: ImageLoader
    dataset: ImageDataset
    file: store.FeatureFile

    def first_images(self, count: int) -> Tensor:
        rows = range(min(count, len(self.dataset)))
        return torch.stack([self.dataset[self.epoch, row][0] for row in rows])


def _views(
    sources: dict[str, tuple[ImageLoader, ImageDataset]], views: int, weights: str, directory: Path
) -> Iterator[_View]:
    for split, (loader, images) in sources.items():
        dataset, augmented = images, split == "train" and views > 1
        if split == "train" and not augmented:
            transform = sources["val"][1].transform
            dataset = ImageDataset(images.images, images.labels, images.classes, transform)
        for epoch in range(views if augmented else 1):
            key = _feature_key(weights, dataset, epoch if augmented else None)
            file = store.FeatureFile(directory, distributed.from_main(key), len(dataset))
            yield _View(split, epoch, loader, dataset, file)


def _stored(views: list[_View]) -> list[tuple[_View, np.ndarray]]:
    """The views whose features are stored, and these."""
    return [(view, array) for view in views if (array := view.file.find()) is not None]


def _feature_key(weights: str, dataset: ImageDataset, epoch: int | None) -> str:
    """A digest of all that features depend on, or a random key where that is not known.

    `weights` is a digest; `epoch` is None where the transform draws nothing at random.
    """
    steps = list(_steps(dataset.transform))
    known = all(type(step).__module__.startswith(_DESCRIBED) for step in steps)
    if not known or any(type(step).__name__ == "Lambda" for step in steps):
        return f"{store.ONE_TIME}{secrets.token_hex(8)}"
    files = dataset.images.keys().tobytes()
    seed = None if epoch is None else (dataset.seed, epoch)
    return fingerprint([_FORMAT, weights, repr(dataset.transform), files, seed])


def _steps(transform: Callable) -> Iterator[Callable]:
    """A transform and all those that it is made of."""
    yield transform
    for step in getattr(transform, "transforms", ()):
        yield from _steps(step)


def _forget_mismatches(views: list[_View], model: nn.Module, head: nn.Module) -> None:
    """Delete stored features that do not lead to the model's own logits for a first image.

    A key describes weights and layers, not what a model's own code does with them.
    """
    if not (stored := _stored(views)):
        return
    features = torch.from_numpy(np.stack([array[0] for _, array in stored])).float()
    images = torch.cat([view.first_images(1) for view, _ in stored])
    if not _head_agrees(head, features, model, images):
        for view, _ in stored:
            view.file.forget()


def _head_agrees(head: nn.Module, features: Tensor, model: nn.Module, images: Tensor) -> bool:
    """Whether head and model give the same logits, up to rounding in half precision or on a GPU."""
    device = engine.device()
    model.to(device)
    with evaluation_mode(model), evaluation_mode(head), torch.inference_mode():
        found, expected = head(features.to(device)), model(images.to(device))
    if found.shape != expected.shape:
        return False
    tolerance = 0.01 if device.type == "cpu" else 0.05
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _folded_copy(
    frozen: nn.Module, head: nn.Module, model: nn.Module, images: Tensor
) -> tuple[nn.Module, tuple[int, ...]]:
    """`frozen` on the device, folded, in the fastest memory layout for convolutions.

    Also the shape of its output for one image. Tried on a few `images`: raises ParameterError where
    the model does more than to run the head on what the frozen part puts out.
    """
    images = images.to(engine.device())
    folded = fold_batchnorm(frozen.to(engine.device())).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        try:
            features = folded(images)
        except RuntimeError:  # layers that call `view` need the usual layout
            folded = folded.to(memory_format=torch.contiguous_format)
            features = folded(images)
    if not _head_agrees(head, features, model, images):
        raise ParameterError(
            f"{type(model).__name__} does more than to run its last layers on the outputs of the "
            "frozen ones, so those cannot be computed once. Train it with train_model as it is."
        )
    return folded, tuple(features.shape[1:])


def _run_frozen(
    folded: nn.Module, view: _View, shape: tuple[int, ...], *, writes: bool, progress: tqdm
) -> None:
    """Write the outputs of the frozen layers for a view to its file; resumes an interrupted pass.

    Each of several processes computes its share, and those with `writes` write all. Raises
    TrainingError for values beyond half precision.
    """
    done = view.file.rows_done()
    if set(distributed.of_all(done)) != {done}:  # the machines of a run differ in it: start again
        done = 0
        if writes:
            view.file.forget()
        distributed.wait()
    progress.update(done)
    batch_size = view.loader.batch_sampler.batch_size
    batches = _FromRow(done, len(view.dataset), batch_size, epoch=view.epoch)
    with torch.inference_mode(), engine.accelerator().autocast():
        loader = iter(ImageLoader(view.dataset, batches, view.loader.num_workers))
        for _ in range(len(batches)):  # also where this process has no share of the last batch
            batch = next(loader, None)
            features = folded(batch[0].to(engine.device())) if batch else torch.empty(0, *shape)
            features = features.half().cpu()
            if distributed.any_of_all(not features.isfinite().all()):
                raise HalfPrecisionError(
                    "The frozen layers put out values that half precision cannot hold (above "
                    "65,504, or not a number), so they cannot be stored. Train without precompute."
                )
            shares = distributed.gathered(features)
            rows = features.new_empty(sum(map(len, shares)), *shape)
            for rank, share in enumerate(shares):  # the processes took the rows of a batch in turn
                rows[rank :: len(shares)] = share
            if writes:
                view.file.append(rows.numpy())
            progress.update(len(rows))
    if writes:
        view.file.finish()
    distributed.wait()


class _FromRow(EpochBatchSampler):
    """Samples in order from row `start` on, as epoch `epoch` sees them."""

    def __init__(self, start: int, num_samples: int, batch_size: int, *, epoch: int) -> None:
        super().__init__(num_samples - start, batch_size)
        self._start, self._of_epoch = start, epoch

    def _samples(self, epoch: int, generator: torch.Generator) -> Tensor:
        rows = torch.arange(self.num_samples) + self._start
        return torch.stack([torch.full_like(rows, self._of_epoch), rows], dim=1)
