"""Where learning rates come from: by depth, and over the steps of a run."""

import math

from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from resnet_ft.training.callbacks import Callback
from resnet_ft.training.state import TrainingState

_BANDS = 8


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    *,
    weight_decay: float = 0.0,
    first_layer: float = 0.1,
) -> list[dict[str, object]]:
    """Groups for an optimizer of what trains: the head at `learning_rate`, early layers at less.

    From the head down to the first layer, whose share is `first_layer`, the rate falls by the same
    factor from one of eight bands to the next. The order is that of `model.named_parameters()`.
    Biases and normalisation layers get no `weight_decay`.
    """
    parameters = list(model.parameters())
    groups: dict[tuple[int, bool], dict[str, object]] = {}
    for i, parameter in enumerate(parameters):
        if not parameter.requires_grad:
            continue
        from_head = (len(parameters) - 1 - i) * _BANDS // len(parameters)
        is_matrix = parameter.ndim > 1
        group = {
            "params": [],
            "lr": learning_rate * first_layer ** (from_head / (_BANDS - 1)),
            "weight_decay": weight_decay if is_matrix else 0.0,
        }
        groups.setdefault((from_head, is_matrix), group)["params"].append(parameter)
    return list(groups.values())


class StepScheduler(Callback):
    """Steps a torch scheduler of learning rates after every training step."""

    def __init__(self, scheduler: LRScheduler):
        self.scheduler = scheduler

    def on_step_end(self, state: TrainingState) -> None:
        if state.phase == "train":
            self.scheduler.step()

    def state_dict(self) -> dict[str, object]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.scheduler.load_state_dict(state)


def warmup_cosine(progress: float, warmup: float = 0.1) -> float:
    """The factor of the learning rate, 0 to 1, when `progress`, 0 to 1, of the training is over.

    It rises linearly from 0.01 to 1 during the share `warmup`, then falls to 0 along half a cosine:
    `LambdaLR(optimizer, lambda step: warmup_cosine(step / total_steps))`. The warm-up is that of
    Goyal et al. (2017, arXiv:1706.02677), the cosine that of Loshchilov and Hutter (2017,
    arXiv:1608.03983).
    """
    if progress < warmup:
        return 0.01 + 0.99 * progress / warmup
    if progress >= 1:
        return 0.0
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
