"""A chain of layers in columns, a column a layer: its first maps, and what feeds each of them how strongly."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.draw import smaller
from cnn_lightning.tools.explain.picker import pack
from cnn_lightning.tools.explain.record import Layer, Recording

MAPS = 16
"""Maps of a layer that are shown."""
CELLS = 2048
"""Numbers of a vector that are shown."""
STRONGEST = 12
"""Inputs of a linear layer's output that are shown."""
BUDGET = 150_000
"""About this many numbers are in the columns; of larger maps the means of squares of pixels are."""
SIDES = (64, 32, 16)
"""The longest side of a map in the page, in pixels: the first that keeps to the budget."""

Links = list[list[tuple[int, float]]]
"""Of each output that is shown, the inputs that feed it and how strongly, with a sign."""

_SAME = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Upsample),
    *(nn.Dropout, nn.Dropout2d, nn.Identity),
)
"""Layers whose output channel sees its own input channel only."""


def columns(pixels: Tensor, seen: Recording, *, still: bool = True) -> list[dict[str, Any]]:
    """The columns from left to right: the picture, its normalisation, the layers, and the probabilities.

    Args:
        pixels: The picture (C, H, W) with values from 0 to 1.
        seen: What was recorded; its last layer is the loss.
        still: Whether the maps and links are needed; a live page computes them.
    """
    layers = seen.layers[:-1]
    outputs = [layers[0].x, *(layer.y for layer in layers)]
    side = next((side for side in SIDES if _size(outputs, side) <= BUDGET), SIDES[-1])
    made = [
        {
            "title": "picture",
            "type": "",
            "label": None,
            "pixels": True,
            **_shape(pixels[None]),
            "count": 1,
            "links": None,
        },
        {"title": "normalised", "type": "", "label": None, **_column(layers[0].x, side, still), "links": "same"},
    ]
    for layer in layers:
        entry = _column(layer.y, side, still)
        links = _links(layer, still)
        made.append({"title": layer.label, "type": layer.kind, "label": layer.label, **entry, "links": links})
    made.append(
        {
            "title": "probability",
            "type": "softmax",
            "label": layers[-1].label,
            "section": seen.layers[-1].label,
            "probabilities": True,
            "shape": [len(seen.probabilities)],
            "count": len(seen.probabilities),
            "links": "same",
        }
    )
    return made


def _size(outputs: Sequence[Tensor], side: int) -> int:
    return sum(_shown(output, side)[0].numel() for output in outputs)


def _column(output: Tensor, side: int, still: bool) -> dict[str, Any]:
    shown, step = _shown(output, side)
    return {**_shape(output), "count": len(shown), **({"step": step, "y": pack(shown)} if still else {})}


def _shape(output: Tensor) -> dict[str, Any]:
    """Channels, height and width; of a vector its length."""
    shape = list(output.shape[1:])
    return {"shape": shape if len(shape) in (1, 3) else [shape[0], 1, *shape[1:]][:3]}


def _shown(output: Tensor, side: int) -> tuple[Tensor, int]:
    """The first maps or numbers, and the side of the squares of pixels whose means they are."""
    values = output[0]
    if values.dim() == 1:
        return values[:CELLS], 1
    maps = values.reshape(len(values), -1, values.shape[-1])[:MAPS]
    step = -(-max(maps.shape[1:]) // side)
    return torch.stack([torch.from_numpy(smaller(each.numpy(), side)) for each in maps]), step


def _links(layer: Layer, still: bool) -> Links | str | None:
    """What feeds each output: a list, or ``same``, ``flatten``, or None if all inputs feed all outputs."""
    module = layer.module
    if isinstance(module, nn.Flatten):
        return "flatten"
    if isinstance(module, nn.Conv2d):
        return convolution_links(module.weight.detach(), module.groups) if still else []
    if isinstance(module, nn.Linear) and layer.x.dim() == 2:
        return linear_links(module.weight.detach(), layer.x[0]) if still else []
    return "same" if isinstance(module, _SAME) else None


def convolution_links(weight: Tensor, groups: int) -> Links:
    """The mean of the kernel (O, I, h, w) between each two maps that are shown."""
    means, inputs = weight.mean((2, 3)), weight.shape[1]
    found: Links = []
    for channel, row in enumerate(means[:MAPS].tolist()):
        first = channel // (len(weight) // groups) * inputs
        found.append([(first + index, round(mean, 5)) for index, mean in enumerate(row) if first + index < MAPS])
    return found


def linear_links(weight: Tensor, x: Tensor) -> Links:
    """The inputs with the largest products with the weight (O, I), largest magnitude first."""
    products = (weight * x)[:CELLS, :CELLS]
    order = products.abs().argsort(1, descending=True)[:, :STRONGEST]
    return [
        [(index, round(value, 5)) for index, value in zip(indices, values, strict=True)]
        for indices, values in zip(order.tolist(), products.gather(1, order).tolist(), strict=True)
    ]
