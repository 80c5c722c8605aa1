"""Image files to probabilities: workers decode and crop, this process computes a batch at a time.

An image goes through the same code as in training; one that cannot be read has a reason instead.
"""

import copy
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader

from resnet_ft import engine
from resnet_ft.data.batches import worker_processes
from resnet_ft.data.cache import DecodedImages
from resnet_ft.data.dataset import SampleKey, SeededDataset
from resnet_ft.errors import CheckpointError, ImageError, ParameterError
from resnet_ft.models.calibration import Calibration, strangeness
from resnet_ft.models.cutting import fold_batchnorm, in_blocked_layout

_AT_ONCE = 4  # batches, each of which takes memory
_IN_CACHE = 8  # images: what a processor computes of more no longer fits into its caches
_CLOSE = 1e-5  # by how much a probability of the quicker copy may differ


class Answering(nn.Module):
    """What a model answers: its probabilities (N, C), calibrated, then a column for each flag.

    These are 1 for answers that are "unsure" or images that are "unfamiliar", where the calibration
    has a threshold for that, and else 0. `net` puts out logits, then features if it has to. With
    `tta`, they are about the mean of what it says of the images and of the flipped images.
    """

    quick: "tuple[str, Answering, torch.memory_format] | None" = None  # of which weights, and how

    def __init__(
        self, net: nn.Module, num_classes: int, calibration: Calibration, *, tta: bool = False
    ):
        super().__init__()
        self.net, self.num_classes, self.calibration = net, num_classes, calibration
        self.tta = tta
        limits = {"unsure": calibration.threshold, "unfamiliar": calibration.strangest}
        self.flags = [name for name, limit in limits.items() if limit is not None]
        self.means: Tensor
        self.register_buffer("means", calibration.means)

    def forward(self, images: Tensor) -> Tensor:
        said, limits = self._said(images), self.calibration
        if self.tta:
            said = (said + self._said(images.flip(-1))) / 2
        shares, strange = said.tensor_split([self.num_classes], dim=1)
        found = [shares]
        if limits.threshold is not None:
            found.append(shares.amax(dim=1, keepdim=True) < limits.threshold)
        if limits.strangest is not None:
            found.append(strange > limits.strangest)
        return torch.cat(found, dim=1)

    def _said(self, images: Tensor) -> Tensor:
        """Probabilities and, where that has a limit, how strange the images are."""
        logits, features = self.net(images).float().tensor_split([self.num_classes], dim=1)
        said = [(logits / self.calibration.temperature).softmax(dim=1)]
        if self.calibration.strangest is not None:
            said.append(strangeness(features, self.means)[:, None])
        return torch.cat(said, dim=1)


class PredictedFiles(SeededDataset):
    """Image files as bytes for a batch, or as the reason why a file cannot be read."""

    def __init__(self, images: DecodedImages, transform: Callable):
        super().__init__((), transform)
        self.images = images

    def read(self, _epoch: int, index: int) -> tuple[np.ndarray, int]:
        """Image `index`; it has no label."""
        return self.images[index], -1

    def __getitem__(self, row: Any) -> Any:
        try:
            image, draws, *_ = super().__getitem__(SampleKey(0, row, slot=0))
        except ImageError as error:
            return error.reason
        return torch.as_tensor(image), torch.tensor(draws)


@dataclass(frozen=True)
class Answers:
    """The answers for some rows of the files; those with a reason have no probabilities."""

    rows: range
    reasons: list[str | None]
    found: Tensor  # of readable files, on the CPU: see Answering


_Waiting = tuple[range, list[str | None], "Tensor | Future[Tensor]"]


def predict_files(
    model: Answering,
    files: PredictedFiles,
    rows: range,
    *,
    batch_size: int,
    num_workers: int | None = None,
    weights: str = "",
) -> Iterator[Answers]:
    """The answers for these rows, in order, a batch at a time.

    `weights` is a digest of the model's: its quick copy is used again until that changes.
    """
    starts = range(rows.start, rows.stop, batch_size)
    workers = worker_processes(num_workers)
    loader = DataLoader(
        files,
        batch_sampler=(list(range(start, min(start + batch_size, rows.stop))) for start in starts),
        collate_fn=_collate,
        num_workers=min(workers, len(starts)) if len(starts) > 1 else 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else it would draw from the default one
    )
    try:
        batches = iter(loader)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise ParameterError(
            f"The transform cannot be sent to new worker processes ({error}). Define its functions "
            "and classes at the top of a module (no lambda), or give num_workers=0."
        ) from error
    # A GPU computes the next batch while this process writes the rows of the one before.
    ahead, waiting = int(engine.device().type == "cuda"), deque[_Waiting]()
    threads, chosen, pool = torch.get_num_threads(), None, None
    with ExitStack() as stack:
        for start, (unfinished, reasons) in zip(starts, batches, strict=True):
            found: Tensor | Future[Tensor] = torch.empty(0, 0)
            if unfinished:
                batch = _finished(files, *unfinished)
                chosen = chosen or _quick(model, batch, weights)
                network, memory = chosen
                batch = batch.contiguous(memory_format=memory)
                if pool is None and threads > 1 and _is_pure(network, batch):
                    pool = stack.enter_context(_batches_at_once(threads))
                    ahead = threads
                found = pool.submit(_answers, network, batch) if pool else _answers(network, batch)
            waiting.append((range(start, start + len(reasons)), reasons, found))
            if len(waiting) > ahead:
                yield _received(*waiting.popleft())
        yield from starmap(_received, waiting)


def _is_pure(network: Answering, images: Tensor) -> bool:
    """Whether several threads may use a network: traced, it keeps nothing from layer to layer."""
    return images.device.type == "cpu" and isinstance(network.net, GraphModule)


@contextmanager
def _batches_at_once(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute a batch each: cores together at one batch wait for one another."""
    at_once = min(threads, _AT_ONCE)
    try:
        with ThreadPoolExecutor(
            at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def answers(model: Answering, images: Tensor) -> Tensor:
    """What the model says of a batch of images on its device, on the CPU.

    Raises CheckpointError where that are no numbers.
    """
    return _checked(_answers(model, images))


@torch.inference_mode()
def _answers(model: Answering, images: Tensor) -> Tensor:
    parts = images.split(_IN_CACHE if images.device.type == "cpu" else len(images))
    # bf16, in which networks train, would round eight times as coarsely.
    is_half = engine.accelerator().mixed_precision != "no"
    with torch.autocast(images.device.type, torch.float16, enabled=is_half):
        found = torch.cat([model(part).float() for part in parts])
    if is_half and not found.isfinite().all():  # beyond the range of float16
        found = torch.cat([model(part).float() for part in parts])
    return found


def _checked(found: Tensor) -> Tensor:
    found = found.cpu()
    if not found.isfinite().all():
        raise CheckpointError(
            "The model's probabilities are not numbers: its weights are damaged, or too large "
            "for the precision. Load another checkpoint, or compute in full precision: "
            'configure_engine(mixed_precision="no").'
        )
    return found


def _received(rows: range, reasons: list[str | None], found: "Tensor | Future[Tensor]") -> Answers:
    found = found.result() if isinstance(found, Future) else found
    return Answers(rows, reasons, _checked(found))


def _collate(
    samples: Sequence[tuple[Tensor, Tensor] | str],
) -> tuple[list[Tensor], list[str | None]]:
    """The readable images, and the draws of each, in two tensors; why the others are not read."""
    readable = [one for one in samples if not isinstance(one, str)]
    reasons = [one if isinstance(one, str) else None for one in samples]
    return [torch.stack(some) for some in zip(*readable, strict=True)], reasons


def _finished(files: PredictedFiles, images: Tensor, draws: Tensor) -> Tensor:
    """A batch on the device, as floats: bytes are what crosses to it."""
    device, memory = engine.device(), torch.channels_last
    images, draws = (one.to(device, non_blocking=True) for one in (images, draws))
    empty = partial(torch.empty, device=device, memory_format=memory)
    return files.finish(images, draws, empty)


def _quick(model: Answering, images: Tensor, weights: str) -> tuple[Answering, torch.memory_format]:
    """`_made_quick`, once for the same weights."""
    if model.quick is None or not weights or model.quick[0] != weights:
        object.__setattr__(model, "quick", (weights, *_made_quick(model, images)))  # no child
    assert model.quick is not None
    return model.quick[1:]


def _made_quick(model: Answering, images: Tensor) -> tuple[Answering, torch.memory_format]:
    """A copy of the model that gives the same answers in less time, and how it wants its images.

    On a processor the copy has no BatchNorm, and computes in oneDNN's own layout where the whole
    network can; any other has its weights in channels_last memory. A network of one's own may not
    work there, or do what tracing it does not see: two images tell.
    """
    plain, other, net = torch.contiguous_format, torch.channels_last, model.net
    copies: list[tuple[Callable[[], nn.Module | None], torch.memory_format]]
    if images.device.type != "cpu":
        copies = [(lambda: copy.deepcopy(net).to(memory_format=other), other)]
    else:
        copies = [(lambda: in_blocked_layout(net), plain), (lambda: _folded(net), other)]
    expected = answers(model, images[:2].contiguous(memory_format=plain))
    for made, memory in copies:
        try:
            if (copied := made()) is None:
                continue
            quick = Answering(copied, model.num_classes, model.calibration, tta=model.tta)
            quick.to(images.device)
            found = answers(quick, images[:2].contiguous(memory_format=memory))
        except Exception:  # the model's own code may fail in any way
            continue
        if images.device.type != "cpu" or torch.allclose(found, expected, rtol=0, atol=_CLOSE):
            return quick, memory
    return model, plain


def _folded(model: nn.Module) -> nn.Module:
    quick = fold_batchnorm(model)
    return (copy.deepcopy(model) if quick is model else quick).to(memory_format=torch.channels_last)
