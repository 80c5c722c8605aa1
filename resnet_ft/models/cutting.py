"""A model cut in two: what comes before a layer, and what that layer and those after make of it."""

import copy
import warnings
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.fx.experimental.optimization import fuse, optimize_for_inference
from torchvision.models import ResNet

from resnet_ft.errors import ParameterError
from resnet_ft.models.build import head_of

_STAGES = ("layer1", "layer2", "layer3", "layer4", "fc")


def cut_frozen(model: nn.Module) -> tuple[nn.Module, nn.Sequential]:
    """The frozen part, a copy in evaluation mode, and the rest, made of the model's own layers.

    `rest(frozen(images))` is `model(images)`, and training the rest trains the model, which is
    `rest.full_model` (not one of its children). A torchvision ResNet is cut before the stage of the
    first trainable layer, any other model before its head. Raises ParameterError where nothing is
    frozen or the model cannot be cut there.
    """
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ParameterError(
            "Every layer is frozen: freeze(model, until=...) leaves some to train."
        )
    if isinstance(model, ResNet) and type(model).forward is ResNet.forward:
        stages = {name.split(".")[0] for name in trainable}
        if not stages <= set(_STAGES):
            raise ParameterError(
                f"{trainable[0]} trains, so nothing before it can be computed once. Freeze all "
                "layers before a stage: freeze(model, until=...) with one of "
                f"{', '.join(_STAGES)}."
            )
        children = OrderedDict(model.named_children())
        children["flatten"] = nn.Flatten()
        children.move_to_end("fc")
        layers = list(children.items())
        first = min(list(children).index(stage) for stage in stages)
        frozen: nn.Module = copy.deepcopy(nn.Sequential(OrderedDict(layers[:first])))
        rest = nn.Sequential(OrderedDict(layers[first:]))
    else:
        name, head = head_of(model)
        others = [one for one in trainable if not one.startswith(f"{name}.")]
        if others:
            raise ParameterError(
                f"{others[0]} trains. In a model that is not a torchvision ResNet, all but the "
                f"head has to be frozen to be computed once: freeze(model, until={name!r})."
            )
        frozen = copy.deepcopy(model)
        parent, _, child = name.rpartition(".")
        setattr(frozen.get_submodule(parent), child, nn.Identity())
        rest = nn.Sequential(OrderedDict([(child, head)]))
    object.__setattr__(rest, "full_model", model)  # as a child its parameters would train as well
    return frozen.eval(), rest


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A model in evaluation mode, its BatchNorm layers folded into the convolutions before them.

    The same function in less time. The model itself, where torch.fx cannot trace its forward pass.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return fuse(model.traced() if isinstance(model, WithFeatures) else model)
        except Exception:  # tracing runs the model's own code, which may fail in any way
            return model


def in_blocked_layout(model: nn.Module) -> nn.Module | None:
    """A copy without BatchNorm whose layers compute in oneDNN's own memory layout, on a processor.

    None where activations would be converted more than once, since the network has layers, such as
    SiLU, that are not made for it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            traceable = model.traced() if isinstance(model, WithFeatures) else model
            copied: Any = optimize_for_inference(traceable)
            conversions = [node for node in copied.graph.nodes if node.target == "to_mkldnn"]
        except Exception:  # tracing runs the model's own code, which may fail in any way
            return None
    return copied if len(conversions) == 1 else None


class WithFeatures(nn.Module):
    """A model that also puts out its features, what its last layer sees: both in one pass.

    Outputs (N, C + D) for images (N, 3, H, W): `num_logits` logits, then the features.
    """

    num_logits = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        name, head = head_of(model)
        linear = [one for one, layer in head.named_modules() if isinstance(layer, nn.Linear)]
        self._name = f"{name}.{linear[-1]}".removesuffix(".") if linear else name
        self._last = [model.get_submodule(self._name)]  # in a list: no second child

    def traced(self) -> nn.Module:
        """It as a graph, of which a hook would be no part. Raises whatever tracing does."""
        traced: Any = symbolic_trace(self.model)
        nodes = traced.graph.nodes
        (last,) = (node for node in nodes if node.target == self._name)
        (output,) = (node for node in nodes if node.op == "output")
        with traced.graph.inserting_before(output):
            both = traced.graph.call_function(torch.cat, ((output.args[0], last.args[0]), 1))
        output.args = (both,)
        traced.recompile()
        return traced

    def forward(self, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = self._last[0].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
        try:
            logits = self.model(images)
        finally:
            hook.remove()
        self.num_logits = logits.shape[1]
        return torch.cat([logits.float(), seen[-1].flatten(1).float()], dim=1)
