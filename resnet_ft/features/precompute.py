"""precompute: the frozen part of a model runs once, and the rest trains on its outputs."""

import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from resnet_ft import distributed, engine
from resnet_ft.data.batches import EpochBatchSampler, ImageLoader, device_batches
from resnet_ft.data.dataset import ImageDataset
from resnet_ft.errors import ParameterError, TrainingError
from resnet_ft.features import store
from resnet_ft.files import default_cache_dir, fingerprint, user_path
from resnet_ft.models.check import check_model
from resnet_ft.models.checkpoint import weights_digest
from resnet_ft.models.cutting import cut_frozen, fold_batchnorm
from resnet_ft.models.freezing import evaluation_mode
from resnet_ft.notebook import progress_bar

T = TypeVar("T")
_FORMAT = 1  # increase it with any change to how features are computed
_LOSS = 0.05  # of how features vary from image to image: what bfloat16 may round away
_DESCRIBED = ("torchvision.transforms", "resnet_ft.data.transforms")  # completely, by their repr


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

    `cache_dir` (default: the user's cache folder) keeps features under a key of weights, transform
    and files. They are in half precision; in bfloat16 where values are above 65,504, which half
    precision cannot hold; and in float32 where bfloat16 would round away more than a twentieth of
    how they vary from image to image. They take at most `cache_size_gb` GiB (default: half of what
    the disk has); the least recently used are deleted first. Each of several processes computes its
    share. Raises ParameterError for a model that cannot be cut where it is frozen, TrainingError
    without enough room, or for features that are not finite.
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
            make_room = None
            if writes:
                kept = {view.file.key for view in every_view}
                make_room = partial(store.make_room, shape=shape, size_gb=cache_size_gb, kept=kept)
                make_room([view.file for view in missing])
            total = sum(len(view.dataset) for view in missing)
            with progress_bar(None, "Running the frozen layers", total) as progress:
                types = {_run_frozen(folded, view, shape, make_room, progress) for view in missing}
            if distributed.is_main() and types != {store.TYPES[0]}:
                widest = str(max(types, key=store.TYPES.index)).removeprefix("torch.")
                print(
                    "The frozen layers put out values above 65,504, which half precision cannot "
                    f"hold, so they are stored in {widest}."
                )
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


def _stored(views: list[_View]) -> list[tuple[_View, Tensor]]:
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
    features = torch.stack([rows[0].float() for _, rows in stored])
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
    the model does more than to run the head on what the frozen part puts out, TrainingError where
    that is not finite.
    """
    images = images.to(engine.device())
    folded = fold_batchnorm(frozen.to(engine.device())).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        try:
            features = folded(images)
        except RuntimeError:  # layers that call `view` need the usual layout
            folded = folded.to(memory_format=torch.contiguous_format)
            features = folded(images)
    _type_for(*_peak_and_loss(features, None).tolist(), at_least=store.TYPES[0])
    if not _head_agrees(head, features, model, images):
        raise ParameterError(
            f"{type(model).__name__} does more than to run its last layers on the outputs of the "
            "frozen ones, so those cannot be computed once. Train it with train_model as it is."
        )
    return folded, tuple(features.shape[1:])


def _run_frozen(
    folded: nn.Module,
    view: _View,
    shape: tuple[int, ...],
    make_room: Callable[[list[store.FeatureFile]], None] | None,
    progress: tqdm,
) -> torch.dtype:
    """Write the outputs of the frozen layers for a view to its file; returns their type.

    An interrupted pass resumes; one starts again, in a wider type, at values that do not fit. Each
    of several processes computes its share, and those with `make_room` write all.
    """
    done, dtype = view.file.rows_done(), view.file.dtype
    if set(distributed.of_all((done, dtype))) != {(done, dtype)}:
        done, dtype = 0, store.TYPES[0]  # the machines of a run differ in it: start again
        if make_room:
            view.file.forget()
        distributed.wait()
    progress.update(done)
    with torch.inference_mode(), engine.accelerator().autocast():
        while done < len(view.dataset):
            for rows, peak, loss in _outputs(folded, view, shape, dtype, start=done):
                needed = _type_for(peak, loss, at_least=dtype)
                if needed != dtype:
                    progress.update(-done)
                    done, dtype = 0, needed
                    if make_room:
                        view.file.restart(shape, dtype)
                        make_room([view.file])
                    break
                if make_room:
                    view.file.append(rows)
                progress.update(len(rows))
                done += len(rows)
    if make_room:
        view.file.finish()
    distributed.wait()
    return dtype


def _outputs(
    folded: nn.Module, view: _View, shape: tuple[int, ...], dtype: torch.dtype, *, start: int
) -> Iterator[tuple[Tensor, float, float]]:
    """What the frozen layers put out for a view from row `start` on, batch by batch, in a type.

    Of all processes, on the CPU, with `_peak_and_loss`. The device computes a batch while the one
    before is copied and written.
    """
    batches = _FromRow(start, len(view.dataset), view.loader.batch_sampler.batch_size, view.epoch)

    def copies() -> Iterator[Callable[[], list[Tensor]]]:
        loader = device_batches(ImageLoader(view.dataset, batches, view.loader.num_workers))
        net = engine.InParts(folded)
        for number in range(len(batches)):  # also where this process has no share of the last batch
            batch = next(loader, None)
            features = net(batch[0]) if batch else torch.zeros(0, *shape)
            choosing = dtype if not start and not number else None
            yield engine.to_cpu(features.to(dtype), _peak_and_loss(features, choosing))

    for copied in _one_behind(copies()):
        features, (peak, loss) = copied()
        shares = distributed.gathered(features)
        rows = features.new_empty(sum(map(len, shares)), *shape)
        for rank, share in enumerate(shares):  # the processes took the rows of a batch in turn
            rows[rank :: len(shares)] = share
        measured = torch.tensor(distributed.of_all((peak.item(), loss.item())))
        peak, loss = measured.amax(dim=0).tolist()  # not a number, if that is what one has
        yield rows, peak, loss


def _one_behind(items: Iterator[T]) -> Iterator[T]:
    """Each item, once the next one has been made, or has failed to be."""
    last: list[T] = []
    try:
        for item in items:
            yield from last
            last = [item]
    except Exception:
        yield from last
        raise
    yield from last


def _peak_and_loss(features: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The largest absolute value, and how much a type, if one is given, rounds away; (2,).

    That is the size of the rounding errors divided by that of the features' differences from their
    means over the batch. It is measured for bfloat16, whose eight digits may be too few.
    """
    zero = features.new_zeros((), dtype=torch.float)
    if not len(features):
        return torch.stack([zero, zero])
    peak = torch.linalg.vector_norm(features, math.inf, dtype=torch.float)
    if dtype != torch.bfloat16:
        return torch.stack([peak, zero])
    scaled = features / peak.clamp(min=1e-30)  # its squares are finite
    error = (scaled - scaled.to(dtype)).norm()
    return torch.stack([peak, error / (scaled - scaled.mean(dim=0)).norm().clamp(min=1e-30)])


def _type_for(peak: float, loss: float, *, at_least: torch.dtype) -> torch.dtype:
    """The first type from `at_least` on that holds a batch. Raises TrainingError if none does."""
    for dtype in store.TYPES[store.TYPES.index(at_least) :]:
        if peak <= torch.finfo(dtype).max and (loss <= _LOSS or dtype != at_least):
            return dtype
    raise TrainingError(
        "The frozen layers put out values that are not finite, so nothing can be learned from "
        "them. Look for broken images with notebook 02, and check the model's weights; on a GPU, "
        'configure_engine(mixed_precision="no") computes with larger numbers than fp16 has.'
    )


class _FromRow(EpochBatchSampler):
    """Samples in order from row `start` on, as epoch `epoch` sees them."""

    def __init__(self, start: int, num_samples: int, batch_size: int, epoch: int) -> None:
        super().__init__(num_samples - start, batch_size)
        self._start, self._of_epoch = start, epoch

    def _samples(self, epoch: int, generator: torch.Generator) -> Tensor:
        rows = torch.arange(self.num_samples) + self._start
        return torch.stack([torch.full_like(rows, self._of_epoch), rows], dim=1)
