"""The pictures of a layer's arrays, and the layout with which the page's script paints them again."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from cnn_lightning import draw
from cnn_lightning.draw import Picture
from cnn_lightning.tools.explain.record import Layer

INPUTS = 32
"""The number of input channels whose kernels are shown."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Layout:
    """How maps stand in a picture, as `draw.grid` takes it; of kernels, how many outputs and inputs are shown."""

    columns: int = 8
    most: int = 64
    side: int = 64
    tile: int = 44
    outputs: int = 0
    inputs: int = 0

    def grid(self, maps: draw.Floats, what: str) -> Picture:
        """The picture of maps (n, h, w)."""
        return draw.grid(maps, what, columns=self.columns, most=self.most, side=self.side, tile=self.tile)


@dataclass(frozen=True)
class Figure:
    """A picture, its caption, and the name of the array in the page's script."""

    name: str
    array: str
    picture: Picture
    layout: Layout


def of(layer: Layer, deep: bool) -> Iterator[Figure]:
    """The pictures of a layer's output, weight and their gradients; smaller ones in a ``deep`` network."""
    for array, name, value in (("y", "output", layer.y), ("grad_y", "gradient of the output", layer.grad_y)):
        layout = _maps_layout(value, deep)
        yield Figure(name, array, layout.grid(_maps(value), f"{_capital(name)} of {layer.label}"), layout)
    if "weight" not in layer.parameters:
        return
    kind = "filters" if isinstance(layer.module, _CONVOLUTIONS) else "weights"
    weight, gradient = layer.parameters["weight"]
    for array, name, value in (("weight", kind, weight), ("grad_weight", f"gradient of the {kind}", gradient)):
        what = f"{_capital(name)} of {layer.label}"
        if value.dim() == 4 and value.shape[1] == 3:
            layout = Layout(most=16 if deep else 64, tile=36)
            yield Figure(f"{name} in colour", f"{array}_colors", colors(value, what, layout), layout)
        yield _weights(value, what, name, array, deep)


def network_input(gradient: Tensor) -> Figure:
    """The gradient of the loss by the picture (C, H, W): of colours first their sum."""
    maps = gradient.numpy()
    colors = len(maps) == 3
    layout = Layout(columns=2, tile=108) if colors else Layout(tile=224)
    maps = np.concatenate([maps.sum(0, keepdims=True), maps]) if colors else maps
    picture = layout.grid(maps, "Gradient of the loss by each pixel")
    parts = "the sum of the channels, red, green, blue" if colors else ""
    return Figure(
        "gradient", "grad_x", replace(picture, alt=f"{picture.alt}; {parts}".rstrip("; "), count=parts), layout
    )


def filters(weight: Tensor, what: str, layout: Layout) -> Picture:
    """Kernels (O, C, h, w): a row for each output channel if they have several input channels, else side by side."""
    values = weight.numpy()[: layout.outputs, : layout.inputs]
    rows, columns = values.shape[:2]
    picture = layout.grid(values.reshape(-1, *values.shape[2:]), what)
    if weight.shape[1] == 1:
        return picture
    outputs, inputs = _of(rows, weight.shape[0]), _of(columns, weight.shape[1])
    axes = f"a row for each of {outputs} outputs, a column for each of {inputs} inputs"
    return replace(picture, alt=f"{picture.alt}; {axes}", count=axes)


def filters_layout(weight: Tensor, *, outputs: int = 64, inputs: int = INPUTS) -> Layout:
    """That of kernels (O, C, h, w)."""
    outputs, inputs = min(outputs, weight.shape[0]), min(inputs, weight.shape[1])
    columns = 8 if weight.shape[1] == 1 else inputs
    return Layout(columns, outputs * inputs, tile=36 if inputs == 1 else 18, outputs=outputs, inputs=inputs)


def colors(weight: Tensor, what: str, layout: Layout) -> Picture:
    """Kernels (O, 3, h, w) of red, green and blue as coloured tiles."""
    return draw.colors(weight.numpy(), what, columns=layout.columns, most=layout.most, tile=layout.tile)


def _weights(value: Tensor, what: str, name: str, array: str, deep: bool) -> Figure:
    if value.dim() == 4:
        layout = filters_layout(value, outputs=16, inputs=16) if deep else filters_layout(value)
        return Figure(name, array, filters(value, what, layout), layout)
    if value.dim() == 2:
        layout = Layout(side=256, tile=320)
        return Figure(name, array, layout.grid(value.numpy()[None], what), layout)
    layout = Layout(columns=16, most=256, tile=14)
    return Figure(name, array, layout.grid(value.numpy().reshape(-1, 1, 1), what), layout)


def _maps_layout(value: Tensor, deep: bool) -> Layout:
    """Many small tiles for a vector, a few large ones for tokens."""
    if value.dim() < 3:
        return Layout(columns=16, most=256, side=256, tile=18)
    most = 16 if deep else 64
    if value.dim() == 3:
        return Layout(most=most, side=256, tile=320)
    return Layout(most=most, side=28 if deep else 112, tile=32 if deep else 44)


def _maps(tensor: Tensor) -> draw.Floats:
    """(1, C, H, W) as C maps, (1, n) as n maps of one pixel, and anything else as maps of its last two axes."""
    array = tensor.numpy()
    if array.ndim >= 3:
        return array.reshape(-1, *array.shape[-2:])
    return np.asarray(array).reshape(-1, 1, 1)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _of(shown: int, n: int) -> str:
    return str(n) if shown == n else f"the first {shown} of {n}"
