"""Why a class: the places of an image that spoke for it, and the images that look alike."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from resnet_ft.engine import unwrapped
from resnet_ft.errors import ParameterError
from resnet_ft.evaluation.predictions import Predictions
from resnet_ft.models.freezing import evaluation_mode


def grad_cam(model: nn.Module, image: Tensor, target: int | None = None) -> np.ndarray:
    """How much each place of an image speaks for a class, or below 0 against it: (H, W), float32.

    `image` (3, H, W) is as a data loader delivers it; `target` is the number of a class, by default
    of the most probable one. The layer is the last one that puts out a map, before the pooling; it
    is computed in the precision of the weights. Raises ParameterError for a network without such a
    layer (most transformers), and without Captum. Grad-CAM: Selvaraju et al., ICCV 2017.
    """
    try:
        from captum.attr import LayerAttribution, LayerGradCam
    except ImportError as error:
        needed = 'Attention needs Captum, the extra "explain": pip install captum'
        raise ParameterError(needed) from error
    net = unwrapped(model)
    like = next(net.parameters(), torch.empty(0))
    precise = torch.autocast(like.device.type, enabled=False)
    with evaluation_mode(net), torch.inference_mode(False), torch.enable_grad(), precise:
        # Gradients have to reach frozen layers; no leaf, as the first layer may work in place.
        images = image[None].clone().to(like).requires_grad_().clone()
        layer, logits = _last_map(net, images)
        label = int(logits.argmax()) if target is None else target
        if not 0 <= label < len(logits):
            raise ParameterError(f"target={target} should be from 0 to {len(logits) - 1}.")
        found = LayerGradCam(net, layer).attribute(images, target=label).detach().float()
    return LayerAttribution.interpolate(found, image.shape[1:], "bilinear")[0, 0].cpu().numpy()


def _last_map(net: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """The last layer, in the order of the computation, that puts out a map, and logits (C,)."""
    found, convolved = list[nn.Module](), False

    def look(module: nn.Module, _: object, output: object) -> None:
        nonlocal convolved
        convolved |= isinstance(module, nn.Conv2d)
        if not isinstance(output, Tensor) or output.ndim < 3 or output[0, 0].numel() == 1:
            return  # vectors, also as maps of a single place
        height, width = output.shape[2:] if output.ndim == 4 else (0, 1)
        is_map = 0.5 < height * images.shape[3] / (width * images.shape[2]) < 2
        # Else a list of places, as in a transformer: a map from before it explains little.
        found[:] = [module] if convolved and is_map else []

    hooks = [module.register_forward_hook(look) for module in net.modules()]
    try:
        with torch.no_grad():
            logits = net(images.clone())[0]
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ParameterError(
            f"{type(net).__name__} pools no map that convolutions made, so there is no attention "
            "to show. A ResNet has one, and so have most convolutional networks."
        )
    return found[0], logits


def similar_images(
    predictions: Predictions, others: Predictions, rows: Sequence[int], *, num_similar: int = 3
) -> pd.DataFrame:
    """Which images of `others` look most alike to the network, for each of these rows.

    Both are by evaluate(..., features=True). Returns `num_similar` rows for each: `path`, and of
    the other image `similar` (its path), `label` and `similarity`, the cosine of their features.
    """
    features, among = features_of([predictions, others])
    nearest = NearestNeighbors(n_neighbors=min(num_similar, len(among)), metric="cosine").fit(among)
    distances, found = nearest.kneighbors(features[list(rows)])
    similar = others.table.iloc[found.ravel()].rename(columns={"path": "similar"})
    paths = predictions.table["path"].iloc[list(rows)].repeat(found.shape[1])
    table = similar[["similar", "label"]].assign(path=paths.array, similarity=1 - distances.ravel())
    return table[["path", "similar", "label", "similarity"]].reset_index(drop=True)


def features_of(several: Sequence[Predictions]) -> list[np.ndarray]:
    """Their features (N, D), in full precision. Raises ParameterError unless one model made all."""
    found = [one.features.astype(np.float32) for one in several if one.features is not None]
    if len(found) < len(several) or len({one.weights for one in several}) > 1:
        raise ParameterError(
            "These predictions have no features of one model. Evaluate all images with the same: "
            'evaluate(model, dataloaders["val"], features=True).'
        )
    return found
