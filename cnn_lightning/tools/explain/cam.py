"""Grad-CAM: where in the picture the last convolution saw what speaks for the predicted class.

Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via gradient-based localization", ICCV 2017,
https://arxiv.org/abs/1610.02391.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnn_lightning.tools.explain.record import Layer, Recording

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_POOLINGS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)


@dataclass(frozen=True)
class Cam:
    """The map of Grad-CAM (h, w), from 0 on, of the output of the layer ``label``, for class ``index``."""

    label: str
    index: int
    values: Tensor


def grad_cam(net: nn.Module, image: Tensor, seen: Recording) -> Cam | None:
    """Run the picture (1, C, H, W) again, and the gradient of the predicted class's logit back to the last maps.

    Args:
        net: The network, as `record` left it.
        image: The normalised picture.
        seen: What was recorded of it.

    Returns:
        None if the network has no convolution whose output has more than one pixel.
    """
    layer = last_maps(seen.layers)
    if layer is None:
        return None
    outputs: list[Tensor] = []
    handle = layer.module.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        found = net(image)
    finally:
        handle.remove()
    logits: Tensor = found if isinstance(found, Tensor) else found[0]
    index = int(logits[0].argmax())
    maps = outputs[layer.again - 1]
    (gradient,) = torch.autograd.grad(logits[0, index], maps)
    return Cam(layer.label, index, (gradient.mean((2, 3), keepdim=True) * maps.detach()).sum(1)[0].relu())


def last_maps(layers: Sequence[Layer]) -> Layer | None:
    """The last convolution, or what follows it on maps of the same size, such as its normalisation and its ReLU."""
    places = [
        index
        for index, layer in enumerate(layers)
        if isinstance(layer.module, _CONVOLUTIONS) and layer.y.dim() == 4 and layer.y[0, 0].numel() > 1
    ]
    if not places:
        return None
    found = layers[places[-1]]
    for layer in layers[places[-1] + 1 :]:
        if layer.y.shape != found.y.shape or isinstance(layer.module, _POOLINGS):
            break
        found = layer
    return found
