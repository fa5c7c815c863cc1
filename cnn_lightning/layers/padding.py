"""Padding layers. An image without a batch axis counts as a batch of one, as in torch."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.ops import expect, padding

__all__ = [
    "CircularPad1d",
    "CircularPad2d",
    "CircularPad3d",
    "ConstantPad1d",
    "ConstantPad2d",
    "ConstantPad3d",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReflectionPad3d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ReplicationPad3d",
    "ZeroPad1d",
    "ZeroPad2d",
    "ZeroPad3d",
]


class PadFunction(torch.autograd.Function):
    """Borders of pixels of the image, or of one number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pad: tuple[int, ...], mode: str, value: float = 0.0) -> Any:
        """Save the input for its shape; for circular and constant padding only the shape, as in torch."""
        ctx.save_for_backward(bridge.blank(x) if mode in ("circular", "constant") else x)
        ctx.options = {"pad": pad, "mode": mode}
        return bridge.call(padding.pad, x, **ctx.options, value=value)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """Add the gradient of each border pixel to the pixel that it repeats."""
        (x,) = ctx.saved_tensors
        return bridge.call(padding.pad_backward, grad_y, x, **ctx.options), None, None, None


PADDING = catalog.same_order(pad=0, pad_backward=1)
"""`catalog.Entry.memory` of padding."""

COPIES = (
    r"y_u = x_s \text{, where } s \text{ is the pixel of the image that border pixel } u \text{ copies}",
    r"\d{x_s} = \sum_{u : \text{u copies s}} g_u",
)
NUMBERS = (
    r"y_u = x_s \text{ inside the image, else } v",
    r"\d{x_s} = g_u \text{, where } u \text{ is the place of } s \text{ in the output}",
)

entered = partial(
    catalog.layer, formulas="padding", functions=("pad",), kinks=(), choices=None, memory=PADDING, flops=None
)


@entered(native=torch.nn.ZeroPad1d, page=NUMBERS)
class ZeroPad1d(Layer, torch.nn.ZeroPad1d):
    """`torch.nn.ZeroPad1d` in NumPy: borders of zeros."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) or (C, L) to (N, C, L') or (C, L')."""
        return _filled(self, input)


@entered(native=torch.nn.ZeroPad2d, page=NUMBERS)
class ZeroPad2d(Layer, torch.nn.ZeroPad2d):
    """`torch.nn.ZeroPad2d` in NumPy: borders of zeros."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, C, H', W') or (C, H', W')."""
        return _filled(self, input)


@entered(native=torch.nn.ZeroPad3d, page=NUMBERS)
class ZeroPad3d(Layer, torch.nn.ZeroPad3d):
    """`torch.nn.ZeroPad3d` in NumPy: borders of zeros."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, D, H, W) or (C, D, H, W) to (N, C, D', H', W') or (C, D', H', W')."""
        return _filled(self, input)


@entered(native=torch.nn.ConstantPad1d, page=NUMBERS)
class ConstantPad1d(Layer, torch.nn.ConstantPad1d):
    """`torch.nn.ConstantPad1d` in NumPy: borders of one number."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) or (C, L) to (N, C, L') or (C, L')."""
        return _filled(self, input)


@entered(native=torch.nn.ConstantPad2d, page=NUMBERS)
class ConstantPad2d(Layer, torch.nn.ConstantPad2d):
    """`torch.nn.ConstantPad2d` in NumPy: borders of one number."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, C, H', W') or (C, H', W')."""
        return _filled(self, input)


@entered(native=torch.nn.ConstantPad3d, page=NUMBERS)
class ConstantPad3d(Layer, torch.nn.ConstantPad3d):
    """`torch.nn.ConstantPad3d` in NumPy: borders of one number."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, D, H, W) or (C, D, H, W) to (N, C, D', H', W') or (C, D', H', W')."""
        return _filled(self, input)


@entered(native=torch.nn.ReflectionPad1d, page=COPIES)
class ReflectionPad1d(Layer, torch.nn.ReflectionPad1d):
    """`torch.nn.ReflectionPad1d` in NumPy: borders of the mirror image."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) or (C, L) to (N, C, L') or (C, L')."""
        return _copied(self, input, "reflect")


@entered(native=torch.nn.ReflectionPad2d, page=COPIES)
class ReflectionPad2d(Layer, torch.nn.ReflectionPad2d):
    """`torch.nn.ReflectionPad2d` in NumPy: borders of the mirror image."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, C, H', W') or (C, H', W')."""
        return _copied(self, input, "reflect")


@entered(native=torch.nn.ReflectionPad3d, page=COPIES)
class ReflectionPad3d(Layer, torch.nn.ReflectionPad3d):
    """`torch.nn.ReflectionPad3d` in NumPy: borders of the mirror image."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, D, H, W) or (C, D, H, W) to (N, C, D', H', W') or (C, D', H', W')."""
        return _copied(self, input, "reflect")


@entered(native=torch.nn.ReplicationPad1d, page=COPIES)
class ReplicationPad1d(Layer, torch.nn.ReplicationPad1d):
    """`torch.nn.ReplicationPad1d` in NumPy: borders of the pixel at the edge."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) or (C, L) to (N, C, L') or (C, L')."""
        return _copied(self, input, "replicate")


@entered(native=torch.nn.ReplicationPad2d, page=COPIES)
class ReplicationPad2d(Layer, torch.nn.ReplicationPad2d):
    """`torch.nn.ReplicationPad2d` in NumPy: borders of the pixel at the edge."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, C, H', W') or (C, H', W')."""
        return _copied(self, input, "replicate")


@entered(native=torch.nn.ReplicationPad3d, page=COPIES)
class ReplicationPad3d(Layer, torch.nn.ReplicationPad3d):
    """`torch.nn.ReplicationPad3d` in NumPy: borders of the pixel at the edge."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, D, H, W) or (C, D, H, W) to (N, C, D', H', W') or (C, D', H', W')."""
        return _copied(self, input, "replicate")


@entered(native=torch.nn.CircularPad1d, page=COPIES)
class CircularPad1d(Layer, torch.nn.CircularPad1d):
    """`torch.nn.CircularPad1d` in NumPy: borders of the pixels at the other side."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) or (C, L) to (N, C, L') or (C, L')."""
        bridge.expect_no_transform(input)
        self._check_input_dim(input)
        return _copied(self, input.contiguous(), "circular")  # contiguous, as torch gives it


@entered(native=torch.nn.CircularPad2d, page=COPIES)
class CircularPad2d(Layer, torch.nn.CircularPad2d):
    """`torch.nn.CircularPad2d` in NumPy: borders of the pixels at the other side."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) to (N, C, H', W') or (C, H', W')."""
        bridge.expect_no_transform(input)
        self._check_input_dim(input)
        return _copied(self, input.contiguous(), "circular")  # contiguous, as torch gives it


@entered(native=torch.nn.CircularPad3d, page=COPIES)
class CircularPad3d(Layer, torch.nn.CircularPad3d):
    """`torch.nn.CircularPad3d` in NumPy: borders of the pixels at the other side."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, D, H, W) or (C, D, H, W) to (N, C, D', H', W') or (C, D', H', W')."""
        bridge.expect_no_transform(input)
        self._check_input_dim(input)
        return _copied(self, input.contiguous(), "circular")  # contiguous, as torch gives it


def _copied(layer: Any, input: Tensor, mode: str) -> Tensor:
    """Borders of pixels of the image, with torch's rules on the axes of the input.

    Raises:
        RuntimeError: More borders than axes, or an axis without pixels that is not the batch.
        NotImplementedError: Another number of axes than one or two more than borders; booleans.
    """
    axes = len(expect.borders(bridge.expect_tensor(input).shape, layer.padding))
    if input.dim() not in (axes + 1, axes + 2):
        raise NotImplementedError(
            f"pad: input: expected {axes + 2} axes (batch, channels, ...) or {axes + 1} (channels, ...) "
            f"for {axes} padded ones, got shape {tuple(input.shape)}"
        )
    if mode != "circular" and 0 in input.shape[input.dim() - axes - 1 :]:
        raise RuntimeError(f"pad: input: expected no empty axis but that of the batch, got shape {tuple(input.shape)}")
    if mode != "circular" and input.dtype == torch.bool:
        raise NotImplementedError(f"pad: input: expected a dtype of numbers for {mode!r}, got {input.dtype}")
    if input.device.type == "cpu" and (mode == "replicate" or (mode == "reflect" and axes < 3)):
        input = bridge.autocast("float32", input)  # of torch's paddings these alone, and not on GPUs
    y: Tensor = PadFunction.apply(input, layer.padding, mode)
    return y


def _filled(layer: Any, input: Tensor) -> Tensor:
    """Borders of the layer's number; torch takes None for 0."""
    value = 0.0 if layer.value is None else layer.value
    y: Tensor = PadFunction.apply(bridge.expect_tensor(input), layer.padding, "constant", value)
    return y
