"""Why a class: which places of an image spoke for it (Grad-CAM, computed by Captum)."""

import numpy as np
import torch
from torch import Tensor, nn

from resnet_ft.engine import unwrapped
from resnet_ft.errors import ParameterError
from resnet_ft.models.freezing import evaluation_mode


def grad_cam(model: nn.Module, image: Tensor, target: int | None = None) -> np.ndarray:
    """How much each place of an image speaks for a class: (H, W); below 0, against it.

    `image` (3, H, W) is prepared for the model, as a data loader delivers it; `target` is the
    number of the class, by default that of the most probable one. The layer is the last one that
    puts out a map: what the convolutions found, before it is pooled. It is computed in the
    precision of the weights, also within autocast, where they are. The model stays as it was.
    Raises ParameterError for a network without such a layer (a transformer, for example), and where
    Captum is missing.

    Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based
    localization", ICCV 2017; its upsampling is bilinear here.
    """
    try:
        from captum.attr import LayerAttribution, LayerGradCam
    except ImportError as error:
        raise ParameterError(
            'Maps of attention need Captum: pip install "resnet_ft[explain]", or pip install captum'
        ) from error
    net = unwrapped(model)
    like = next(net.parameters(), torch.empty(0))
    precise = torch.autocast(like.device.type, enabled=False)
    with evaluation_mode(net), torch.inference_mode(False), torch.enable_grad(), precise:
        # Gradients reach frozen layers too; no leaf, since the first layer may work in place.
        images = image[None].clone().to(like).requires_grad_().clone()
        layer, logits = _last_map(net, images)
        if target is not None and not 0 <= target < len(logits):
            raise ParameterError(f"target={target} should be from 0 to {len(logits) - 1}.")
        label = int(logits.argmax()) if target is None else int(target)
        found = LayerGradCam(net, layer).attribute(images, target=label).detach().float()
        found = LayerAttribution.interpolate(found, tuple(image.shape[1:]), "bilinear")
    return found[0, 0].cpu().numpy()


def _last_map(net: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """The last layer, in the order of their work, that puts out a map; and the logits (C,)."""
    found: list[nn.Module] = []
    convolved = False

    def look(module: nn.Module, _: object, output: object) -> None:
        nonlocal convolved
        convolved |= isinstance(module, nn.Conv2d)
        if not isinstance(output, Tensor) or output.ndim < 3 or output[0, 0].numel() == 1:
            return  # vectors, and maps that are pooled to one place
        high, wide = (output.shape[2:] if output.ndim == 4 else (0, 1))
        in_shape = 0.5 < high * images.shape[3] / (wide * images.shape[2]) < 2
        # Other shapes are lists of places, as in a transformer: what comes before explains little.
        found[:] = [module] if convolved and in_shape else []

    hooks = [module.register_forward_hook(look) for module in net.modules()]
    try:
        with torch.no_grad():
            logits = net(images.clone())[0]
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ParameterError(
            f"{type(net).__name__} has no convolutional layer before its pooling, so there is no "
            "map of its attention. Take a convolutional network: a ResNet, for example."
        )
    return found[0], logits
