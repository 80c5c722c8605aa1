"""Where learning rates come from: how large they are, by layer, and over the steps of a run."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from resnet_ft import engine
from resnet_ft.errors import ParameterError
from resnet_ft.visualize.style import BLUE, GREY, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEARNING_RATE = {"pretrained": 3e-4, "random": 1e-3}  # of the head, for AdamW and Adam
_SGD_FACTOR = 10  # SGD does not divide by the gradients' size; measured: 30 is worse, 100 diverges
_FIRST_LAYER = {"pretrained": 0.1, "random": 1.0}  # its share of the head's learning rate
_BANDS = 8  # of layers that share a learning rate
_WARMUP = 0.1  # share of the run

Schedule = str | Callable[[float], float]


def parameter_groups(
    model: nn.Module,
    learning_rate: float | None = None,
    *,
    weight_decay: float = 0.0,
    first_layer: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimizer of what trains: the head at `learning_rate`, early layers at less.

    Early layers know most of what images have in common, so they move less: layer-wise decay as in
    ULMFiT (Howard and Ruder, ACL 2018) and BEiT (Bao et al., ICLR 2022). From the head down to the
    first layer, whose share is `first_layer`, the rate falls by the same factor from one of eight
    bands to the next, in the order of `model.named_parameters()`. Biases and normalisation layers
    get no `weight_decay`.

    By default `learning_rate` is 3e-4 and `first_layer` 0.1; for a model with random weights
    (`model.pretrained` is False) 1e-3 and 1.
    """
    origin = "pretrained" if getattr(model, "pretrained", True) else "random"
    highest = _LEARNING_RATE[origin] if learning_rate is None else learning_rate
    share = _FIRST_LAYER[origin] if first_layer is None else first_layer
    if not highest > 0:
        raise ParameterError(f"learning_rate={learning_rate} should be positive, or None.")
    parameters = list(model.parameters())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for i, parameter in enumerate(parameters):
        if parameter.requires_grad:
            from_head = (len(parameters) - 1 - i) * _BANDS // len(parameters)
            is_matrix = parameter.ndim > 1
            options = {
                "lr": highest * share ** (from_head / (_BANDS - 1)),
                "weight_decay": weight_decay if is_matrix else 0.0,
            }
            group = groups.setdefault((from_head, is_matrix), {"params": [], **options})
            group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(name: str, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """The optimizer "adamw", "adam" or "sgd" (momentum 0.9) over `parameter_groups`.

    Their learning rates are meant for AdamW and Adam; SGD takes 10 times as much. On a GPU a step
    is a few fused kernels. Raises ParameterError for another name.
    """
    fused = engine.device().type == "cuda" or None  # None is torch's own choice
    if name == "adamw":
        return AdamW(groups, fused=fused)
    if name == "adam":
        return Adam(groups, fused=fused)
    if name == "sgd":
        scaled = [{**group, "lr": _SGD_FACTOR * group["lr"]} for group in groups]
        return SGD(scaled, momentum=0.9, nesterov=True, fused=fused)
    raise ParameterError(f'optimizer={name!r} is unknown. Choose "adamw", "adam" or "sgd".')


_FALL: dict[str, Callable[[float], float]] = {  # from 1, over the share of the run after warm-up
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda share: 1 - share,
    "constant": lambda share: 1.0,
}


def warmup_cosine(progress: float, warmup: float = _WARMUP) -> float:
    """The factor of the learning rate, 0 to 1, when the share `progress` of the training is done.

    It rises linearly from 0.01 to 1 during the share `warmup`, then falls to 0 along half a cosine.
    The warm-up is that of Goyal et al. (2017, arXiv:1706.02677), the cosine that of Loshchilov and
    Hutter (2017, arXiv:1608.03983).
    """
    return _factor("cosine", warmup)(progress)


def _factor(schedule: Schedule, warmup: float = _WARMUP) -> Callable[[float], float]:
    if callable(schedule):
        return schedule
    if schedule not in _FALL:
        raise ParameterError(
            f"schedule={schedule!r} is unknown. Choose one of {', '.join(_FALL)}, or give a "
            "function."
        )

    def factor(progress: float) -> float:
        if progress < warmup:
            return 0.01 + 0.99 * progress / warmup
        return _FALL[schedule]((min(progress, 1.0) - warmup) / (1 - warmup))

    return factor


class _Clock(Protocol):
    @property
    def progress(self) -> float: ...


@dataclass(frozen=True)
class PerStep:
    """A scheduler that `train_model` steps after every training step, not after every epoch."""

    scheduler: LRScheduler

    def step(self) -> None:
        """Set the learning rate of the next step."""
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of the scheduler inside."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave; added steps have a warm-up of their own."""
        (factor, *_), planned = getattr(self.scheduler, "lr_lambdas", [None]), 0
        if isinstance(factor, _FactorOfSteps):
            planned = sum(factor.parts)
        self.scheduler.load_state_dict(state)
        if isinstance(factor, _FactorOfSteps) and (added := planned - sum(factor.parts)) > 0:
            factor.parts = [*factor.parts, added]
            for group, rate in zip(
                self.scheduler.optimizer.param_groups, self.scheduler.base_lrs, strict=True
            ):
                group["lr"] = rate * factor(self.scheduler.last_epoch)
            print(f"The learning rate follows its schedule anew for the {added} added steps.")


class _FactorOfSteps:
    """The factor of the learning rate in each step of a run that was lengthened now and then.

    `parts` are the numbers of steps of the run and of what was added; each has a warm-up and a
    decay of its own.
    """

    __slots__ = ("__dict__", "_of_share")  # a LambdaLR saves what is in __dict__

    def __init__(self, of_share: Callable[[float], float], steps: int) -> None:
        self._of_share, self.parts = of_share, [steps]

    def __call__(self, step: int) -> float:
        *earlier, last = self.parts
        for steps in earlier:
            if step < steps:
                return self._of_share(step / max(1, steps))
            step -= steps
        return self._of_share(step / max(1, last))


# What a scheduler of PyTorch changes as it steps; the rest of its state are its settings.
_MOVING = frozenset(
    """last_epoch _step_count _last_lr _is_initial _get_lr_called_within_step
    T_cur T_i best num_bad_epochs cooldown_counter lr_lambdas""".split()  # noqa: SIM905
)


def describe_scheduler(scheduler: Any) -> dict[str, object]:
    """The settings of a scheduler of PyTorch; of others, nothing is known."""
    if not type(scheduler).__module__.startswith("torch.optim"):
        return {}
    settings = {
        name: sorted(one.elements()) if isinstance(one, Counter) else one
        for name, one in scheduler.state_dict().items()
        if name not in _MOVING
    }
    for i, one in enumerate(getattr(scheduler, "_schedulers", ())):  # of which it is made
        settings[f"{i} {type(one).__name__}"] = describe_scheduler(one)
    settings.pop("_schedulers", None)
    return settings


def check_scheduler(scheduler: Any, epochs: int, steps_per_epoch: int | None) -> None:
    """Raise ParameterError for a scheduler that ends before the run, warn of one that looks up.

    `epochs` and the training steps of each, where they are known, are those of the whole run.
    """
    is_per_step = isinstance(scheduler, PerStep)
    inner = scheduler.scheduler if is_per_step else scheduler
    needed = epochs * (steps_per_epoch or 0) if is_per_step else epochs
    if isinstance(inner, OneCycleLR) and inner.total_steps < needed:
        raise ParameterError(
            f"OneCycleLR has total_steps={inner.total_steps}, but it is stepped {needed} times: "
            f"after every {'step' if is_per_step else 'epoch'}. Make it for that many."
        )
    if isinstance(inner, ReduceLROnPlateau) and inner.mode == "max":
        warnings.warn(
            'ReduceLROnPlateau(mode="max") is given the validation loss, which should fall: it '
            'lowers the learning rate while training goes well. Make it with mode="min".',
            stacklevel=4,
        )


def make_scheduler(optimizer: Optimizer, schedule: Schedule, over: int | _Clock) -> PerStep:
    """A scheduler for the learning rates of an optimizer, from the first to the last step of a run.

    `schedule` is "cosine", "linear" (both fall to 0) or "constant", each after a warm-up of a tenth
    of the run, or a function of your own from the share of the training that is done, 0 to 1, to
    the factor of the learning rates. `over` is the number of all training steps, or a TimeBudget.
    """
    factor = _factor(schedule)
    if isinstance(over, int):
        return PerStep(LambdaLR(optimizer, _FactorOfSteps(factor, over)))
    return PerStep(LambdaLR(optimizer, lambda _: factor(over.progress)))


def plot_schedule(optimizer: Optimizer, schedule: Schedule, *, ax: "Axes | None" = None) -> "Axes":
    """The highest and the lowest learning rate of the parameter groups, from start to end."""
    from matplotlib.ticker import PercentFormatter

    factor, shares = _factor(schedule), [step / 200 for step in range(201)]
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    with drawing(ax, (7, 2.8)) as ax:
        for rate, colour, name in ((max(rates), BLUE, "head"), (min(rates), GREY, "first layer")):
            ax.plot(shares, [rate * factor(share) for share in shares], color=colour, label=name)
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.set(xlabel="share of the training steps", ylabel="learning rate", xlim=(0, 1), ylim=0)
        ax.set_title(f"Up to {max(rates):.1e} for the head, {min(rates):.1e} for the first layer")
        ax.legend()
    return ax
