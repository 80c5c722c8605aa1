"""precompute: the frozen part of a network runs once, and the rest trains on what it put out."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import nn
from torch.utils.data import DataLoader

from resnet_ft import engine, processes
from resnet_ft.data.dataset import ImageDataset
from resnet_ft.data.exchange import reads_files
from resnet_ft.errors import ParameterError
from resnet_ft.features.dataset import feature_loader
from resnet_ft.features.keys import feature_key, network_digest
from resnet_ft.features.running import alike, fast_copy, run_frozen
from resnet_ft.features.stored import FeatureFile, forget_nameless, make_room, writable, writing_to
from resnet_ft.files import default_cache_dir
from resnet_ft.models.cutting import cut_frozen
from resnet_ft.models.freezing import evaluation_mode
from resnet_ft.progress import progress_bar


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
    writes = processes.is_first_in(directory)
    with FileLock(directory / "features.lock") if writes else nullcontext():
        if writes:
            _forget_what_is_not_so(views, head)
            forget_nameless(directory)
        processes.wait()
        missing = [view for view in views if processes.any_of_all(view.file.find() is None)]
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
            key = processes.from_main(feature_key(weights, dataset, epoch if varied else None))
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
            processes.wait()
