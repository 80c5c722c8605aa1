"""Learning rates by depth: early layers, which know most of what images have in common, move less.

Layer-wise decay as in ULMFiT (Howard and Ruder, ACL 2018) and BEiT (Bao et al., ICLR 2022).
"""

from torch import nn

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
