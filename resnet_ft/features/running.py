"""One pass of images through a frozen network, into the file that keeps what it puts out."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from resnet_ft import engine, processes
from resnet_ft.data.dataset import ImageDataset, SampleKey
from resnet_ft.data.exchange import image_loader, slots_for
from resnet_ft.data.sampling import EpochBatchSampler
from resnet_ft.errors import ParameterError, TrainingError
from resnet_ft.features.stored import FeatureFile
from resnet_ft.models.folding import fold_batchnorm
from resnet_ft.models.freezing import evaluation_mode


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
            features = _interleaved(processes.gathered(features))
            if writes:
                file.append(features.numpy())
            progress.update(len(features))


def _rows_done_everywhere(file: FeatureFile, writes: bool) -> int:
    """What an interrupted pass left; nothing where the machines of a run do not agree."""
    done = processes.of_all(file.rows_done())
    if len(set(done)) > 1:
        processes.wait()
        if writes:
            file.forget()
        processes.wait()
        return 0
    return done[0]


def _interleaved(shares: list[Tensor]) -> Tensor:
    """A batch from the shares of its processes, which took turns at its rows."""
    whole = shares[0].new_empty(sum(map(len, shares)), *shares[0].shape[1:])
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    return whole
