"""precompute: the frozen part of a network runs once, and the rest trains on what it put out."""

import hashlib
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
from resnet_ft.data.batches import EpochBatchSampler, image_loader, reads_files, slots_for
from resnet_ft.data.cache import file_keys
from resnet_ft.data.dataset import ImageDataset, SampleKey
from resnet_ft.errors import ParameterError, TrainingError
from resnet_ft.features.store import (
    NAMELESS,
    FeatureFile,
    feature_loader,
    forget_nameless,
    make_room,
    writable,
    writing_to,
)
from resnet_ft.files import default_cache_dir, fingerprint
from resnet_ft.models.cutting import cut_frozen, fold_batchnorm
from resnet_ft.models.freezing import evaluation_mode
from resnet_ft.notebook import progress_bar

_FORMAT = 1  # to be raised with any change of how features are computed
_SHOWN_WHOLE = ("torchvision.transforms", "resnet_ft.data.transforms")


def feature_key(weights: str, dataset: ImageDataset, epoch: int | None) -> str:
    """A digest of what features depend on; one that was never seen before where that is not known.

    `weights` is `network_digest`'s. `epoch` is None where the transform draws nothing at random.
    """
    files = file_keys(dataset.images.paths, dataset.images.side or 0).tobytes()
    seed = None if epoch is None else (dataset.seed, epoch)
    transform = _described(dataset.transform)
    if transform is None:
        return f"{NAMELESS}{secrets.token_hex(8)}"
    return fingerprint([_FORMAT, weights, transform, files, seed])


def network_digest(network: nn.Module) -> str:
    """A digest of a network's structure and weights."""
    digest = hashlib.sha256(f"{type(network).__name__} {network}".encode())
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _described(transform: Callable) -> str | None:
    """A transform in words, where they say all of it."""
    steps = list(_steps(transform))
    known = all(type(step).__module__.startswith(_SHOWN_WHOLE) for step in steps)
    hidden = any(type(step).__name__ == "Lambda" for step in steps)
    return repr(transform) if known and not hidden else None


def _steps(transform: Callable) -> Iterator[Callable]:
    yield transform
    for step in getattr(transform, "transforms", ()):
        yield from _steps(step)


class _InOrder(EpochBatchSampler):
    """Samples in order from `start` on, as epoch `epoch` sees them."""

    def __init__(self, num_samples: int, batch_size: int, *, epoch: int, start: int, slots: int):
        super().__init__(num_samples - start, batch_size, slots=slots)
        self._epoch, self._start = epoch, start

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for keys in super().__iter__():
            yield [SampleKey(self._epoch, self._start + key.index, key.slot) for key in keys]


def fast_copy(
    frozen: nn.Module, head: nn.Module, images: Tensor
) -> tuple[nn.Module, tuple[int, ...]]:
    """`frozen` on the device, folded, in the memory layout that convolutions are fastest with.

    And the shape of what it puts out for one image. Tried on a few `images`: raises ParameterError
    where the network is not the head of the frozen part, since it does more than run the two.
    """
    device = engine.device()
    images = images.to(device)
    folded = fold_batchnorm(frozen.to(device)).to(memory_format=torch.channels_last)
    whole = head.full_model.to(device)
    with evaluation_mode(whole), evaluation_mode(head), torch.inference_mode():
        try:
            features = folded(images)
        except RuntimeError:  # layers that call `view` need the usual layout
            folded = folded.to(memory_format=torch.contiguous_format)
            features = folded(images)
        found, expected = head(features), whole(images)
    if not alike(found, expected):
        raise ParameterError(
            f"{type(whole).__name__} does more than to run its last layers on what the frozen ones "
            "put out, so those cannot be computed once. Train it with train_model as it is."
        )
    return folded, tuple(features.shape[1:])


def alike(found: Tensor, expected: Tensor) -> bool:
    """Whether logits are the same but for what is rounded, in half precision or on a GPU."""
    if found.shape != expected.shape:
        return False
    tolerance = 0.01 if engine.device().type == "cpu" else 0.05
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def run_frozen(
    network: nn.Module,
    dataset: ImageDataset,
    file: FeatureFile,
    *,
    shape: tuple[int, ...],
    epoch: int,
    batch_size: int,
    num_workers: int,
    writes: bool,
    progress: tqdm,
) -> None:
    """Append what `network` makes of the images, as this epoch sees them, to the file.

    Goes on where an interrupted pass was. Of several processes each computes its share, and
    those that are told so write all. Raises TrainingError for values beyond half precision.
    """
    done = _rows_done_everywhere(file, writes)
    progress.update(done)
    batches = _InOrder(
        len(dataset), batch_size, epoch=epoch, start=done, slots=slots_for(num_workers)
    )
    device = engine.device()
    with torch.inference_mode(), engine.accelerator().autocast():
        loader = iter(image_loader(dataset, batches, num_workers))
        for _ in range(len(batches)):  # a process without a share of the last batch waits for it
            images = next(loader, [None])[0]
            features = torch.empty(0, *shape) if images is None else network(images.to(device))
            features = features.half().cpu()
            if not features.isfinite().all():
                raise TrainingError(
                    "The frozen layers put out values that half precision cannot hold (above "
                    "65,504, or not a number). Train without precompute."
                )
            features = _interleaved(distributed.gathered(features))
            if writes:
                file.append(features.numpy())
            progress.update(len(features))


def _rows_done_everywhere(file: FeatureFile, writes: bool) -> int:
    """What an interrupted pass left; nothing where the machines of a run do not agree."""
    done = distributed.of_all(file.rows_done())
    if len(set(done)) > 1:
        distributed.wait()
        if writes:
            file.forget()
        distributed.wait()
        return 0
    return done[0]


def _interleaved(shares: list[Tensor]) -> Tensor:
    """A batch from the shares of its processes, which took turns at its rows."""
    whole = shares[0].new_empty(sum(map(len, shares)), *shares[0].shape[1:])
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    return whole


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
    `head.full_model` and what is saved. The new loaders yield what the frozen part puts out, floats
    (N, ...), with labels (N,), batch for batch as `dataloaders`, which `make_dataloaders` made.
    `views=1`: training images are seen as in evaluation. With more, they are varied, and epoch e
    sees view e modulo `views`, where view v is what `dataloaders["train"]` delivers in epoch v.

    Features are kept in half precision in `cache_dir` (the user's cache folder) for the next run
    and the next head, under a key of weights, transform and files; `cache_size_gb` GiB at most
    (half of what the disk has): those go first that were not used for longest. Of several processes
    each computes its share. The model is left in the mode it was in. Raises ParameterError for a
    network that cannot be cut where it is frozen, TrainingError where there is too little room.
    """
    if views < 1:
        raise ParameterError(f"views={views} should be 1, the evaluation view, or more.")
    if not all(map(reads_files, dataloaders.values())):
        raise ParameterError(
            "What frozen layers put out is kept by file, so the loaders have to be those that "
            "make_dataloaders makes of image files. With others, of shards too, train the network "
            "by train_model as it is."
        )
    frozen, head = cut_frozen(model)
    directory = writable(Path(cache_dir or default_cache_dir() / "features"))
    views = list(_views(dataloaders, views, network_digest(frozen), directory))
    writes = distributed.is_first_in(directory)
    with FileLock(directory / "features.lock") if writes else nullcontext():
        if writes:
            _forget_what_is_not_so(views, head)
            forget_nameless(directory)
        distributed.wait()
        missing = [view for view in views if distributed.any_of_all(view.file.find() is None)]
        if missing:
            with writing_to(directory):
                kept = {view.file.key for view in views}
                _run(missing, frozen, head, cache_size_gb, kept=kept, writes=writes)
        arrays = [(view.split, view.file.find()) for view in views]
    return head, {
        split: feature_loader(loader, [array for name, array in arrays if name == split])
        for split, loader in dataloaders.items()
    }


@dataclass(frozen=True)
class _View:
    """The images of one split as one epoch sees them, and where their features are kept."""

    split: str
    epoch: int
    loader: DataLoader
    dataset: ImageDataset
    file: FeatureFile


def _views(
    dataloaders: dict[str, DataLoader], views: int, weights: str, directory: Path
) -> Iterator[_View]:
    for split, loader in dataloaders.items():
        dataset, varied = loader.dataset, split == "train" and views > 1
        if split == "train" and not varied:
            dataset = _with_transform(dataset, dataloaders["val"].dataset.transform)
        for epoch in range(views if varied else 1):
            key = distributed.from_main(feature_key(weights, dataset, epoch if varied else None))
            yield _View(split, epoch, loader, dataset, FeatureFile(directory, key, len(dataset)))


def _forget_what_is_not_so(views: list[_View], head: nn.Module) -> None:
    """Delete stored features that do not lead to the network's own answers for a first image.

    A key knows weights and layers, not what a network's own code does with them.
    """
    stored = [(view, array) for view in views if (array := view.file.find()) is not None]
    if not stored:
        return
    rows = torch.from_numpy(np.stack([array[0] for _, array in stored])).float()
    images = torch.stack([view.dataset[view.epoch, 0][0] for view, _ in stored])
    whole, device = head.full_model.to(engine.device()), engine.device()
    with evaluation_mode(whole), evaluation_mode(head), torch.inference_mode():
        if not alike(head(rows.to(device)), whole(images.to(device))):
            for view, _ in stored:
                view.file.forget()


def _with_transform(dataset: ImageDataset, transform: object) -> ImageDataset:
    return ImageDataset(dataset.images, dataset.labels, dataset.classes, transform)


def _run(
    missing: list[_View],
    frozen: nn.Module,
    head: nn.Module,
    cache_size_gb: float | None,
    *,
    kept: set[str],
    writes: bool,
) -> None:
    """Compute the views that are not there, after making room for all of them."""
    images = torch.stack([missing[0].dataset[i][0] for i in range(min(2, len(missing[0].dataset)))])
    network, shape = fast_copy(frozen, head, images)
    if writes:
        needed = sum(view.file.bytes_missing(shape) for view in missing)
        make_room(missing[0].file.directory, needed, cache_size_gb, kept)
    total = sum(len(view.dataset) for view in missing)
    with progress_bar(None, "Running the frozen layers", total) as progress:
        for view in missing:
            run_frozen(
                network,
                view.dataset,
                view.file,
                shape=shape,
                epoch=view.epoch,
                batch_size=view.loader.batch_sampler.batch_size,
                num_workers=view.loader.num_workers,
                writes=writes,
                progress=progress,
            )
            if writes:
                view.file.finish()
            distributed.wait()
