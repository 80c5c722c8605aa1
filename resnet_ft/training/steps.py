"""One batch: forward, and while training backward and a step, in parts where memory is short."""

import warnings
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resnet_ft import engine, processes
from resnet_ft.errors import TrainingError
from resnet_ft.training.checks import check_batch, check_finite
from resnet_ft.training.state import TrainingState


def run_step(
    state: TrainingState, net: nn.Module, stepper: Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, Tensor]:
    """Mean loss and logits (N, C) of a batch; while training, the weights take a step.

    Where memory runs out, the batch goes through the network in twice as many parts, whose
    gradients add up to those of the whole; that stays so for the rest of the run. (Batch
    normalisation that learns sees the parts.) Raises TrainingError where one image is too much.
    """
    while True:
        try:
            loss, logits = _in_parts(state, net, stepper, images, labels)
            break
        except torch.OutOfMemoryError as error:
            _halve(state, len(images), error)
        engine.free_memory()  # here, where the error no longer holds what filled it
    if state.phase == "train":
        stepper.step()
    return loss, logits


def _in_parts(
    state: TrainingState, net: nn.Module, stepper: Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, Tensor]:
    """Gradients of the mean loss over all parts, and their logits one after the other."""
    loss_sum, answers, training = 0.0, [], state.phase == "train"
    if training:
        stepper.zero_grad()
        # Gradients are averaged over processes, whose shares of the batch may be unequal.
        whole = processes.total(len(labels))[0] / processes.count()
    # While training, all processes have to have as many parts: whole is at most one more than each.
    number = min(state.micro_batches, max(1, int(whole)) if training else len(images))
    parts = list(zip(images.tensor_split(number), labels.tensor_split(number), strict=True))
    for some, true in parts:
        is_last = len(answers) == len(parts) - 1
        with nullcontext() if is_last or not training else engine.accelerator().no_sync(net):
            logits = net(some.to(engine.device(), non_blocking=True))
            check_batch(logits, true)
            loss = state.criterion(logits, true.to(engine.device(), non_blocking=True))
            check_finite(loss.item(), state)
            answers.append(logits.detach())
            if training:
                engine.backward(loss * (len(true) / whole))
        loss_sum += loss.item() * len(true)
    return loss_sum / len(labels), torch.cat(answers)


def _halve(state: TrainingState, batch_size: int, error: torch.OutOfMemoryError) -> None:
    if processes.count() > 1:  # the others wait for this one's gradients of the whole share
        raise TrainingError(
            "The memory does not suffice for a process's share of a batch. Take a smaller "
            "batch_size, more processes or gradient_accumulation_steps, and run it again."
        ) from error
    if state.micro_batches >= batch_size:
        raise TrainingError(
            "The memory does not suffice for a single image. Take a smaller image_size or arch, "
            'or freeze the early layers: freeze(model, until="layer4").'
        ) from error
    state.micro_batches *= 2
    warnings.warn(
        f"The memory does not suffice for {batch_size} images at once: from now on each batch goes "
        f"through the network in {state.micro_batches} parts, with the same steps as before.",
        stacklevel=5,
    )
