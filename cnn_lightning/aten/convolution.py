"""Convolutions along one to three axes, and transposed ones."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.aten.kernels import Native, operator
from cnn_lightning.layers import bridge
from cnn_lightning.ops import conv, conv_transpose


def _flops(weight: Tensor, transposed: bool, x: Tensor, y: Tensor) -> int:
    """Each weight is used once for every pixel: of the input, if transposed, otherwise of the output."""
    images = x if transposed else y
    return 2 * weight.numel() * (images.numel() // max(1, images.shape[1]))


def _forward_flops(y: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    return _flops(weight, rest[4], x, y)


def _backward_flops(_: Any, grad_y: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    transposed, (needs_x, needs_weight, _) = rest[4], rest[-1]
    return _flops(weight, transposed, x, grad_y) * (bool(needs_x) + bool(needs_weight))


@operator("convolution", flops=_forward_flops)
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """(N, C, ...) to (N, O, ...)."""
    options = _options(x, weight, stride, padding, dilation, transposed, output_padding, groups)
    op = getattr(conv_transpose if transposed else conv, _name(weight, transposed))
    return _arranged(bridge.compute(op, x, weight, bias, **options), x, weight)


@operator("convolution_backward", flops=_backward_flops)
def convolution_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    """The gradients of input, weight and bias that ``output_mask`` asks for."""
    options = _options(x, weight, stride, padding, dilation, transposed, output_padding, groups)
    op = getattr(conv_transpose if transposed else conv, f"{_name(weight, transposed)}_backward")
    grad_x, grad_weight, grad_bias = bridge.compute(op, grad_y, x, weight, **options, needs=tuple(output_mask))
    return _arranged(grad_x, x, weight), _arranged(grad_weight, x, weight), grad_bias


def _name(weight: Tensor, transposed: bool) -> str:
    return f"conv{'_transpose' * transposed}{weight.dim() - 2}d"


def _options(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> dict[str, Any]:
    if x.dim() != weight.dim() or x.dim() not in (3, 4, 5):
        raise Native(f"convolution of {x.dim()} axes by {weight.dim()}")
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    if transposed:
        options["output_padding"] = output_padding
    return {name: _each(value, weight) for name, value in options.items()} | {"groups": groups}


def _each(value: Sequence[int], weight: Tensor) -> tuple[int, ...]:
    """One number for each axis."""
    axes = weight.dim() - 2
    return tuple(value) if len(value) == axes else tuple(value) * axes


def _arranged(y: Tensor | None, x: Tensor, weight: Tensor) -> Tensor | None:
    """In the memory format of torch's result: channels last if that of input or weight is, otherwise contiguous.

    torch's convolution of volumes in float64 knows contiguous memory only.
    """
    if y is None:
        return None
    of_float64 = x.dim() == 5 and x.dtype is torch.float64
    if x.dim() == 3 or of_float64 or not (_is_channels_last(x) or _is_channels_last(weight)):
        return y.contiguous()
    if _is_channels_last(y):
        return y
    wanted = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    return torch.empty(y.shape, dtype=y.dtype, memory_format=wanted).copy_(y)


def _is_channels_last(x: Tensor) -> bool:
    """Whether the strides say so, by torch's own rule, which also decides for axes of length 1."""
    if x.stride(1) > x.stride(-1):
        return False
    least = 0
    for axis in (1, *range(x.dim() - 1, 1, -1), 0):
        step, size = x.stride(axis), x.shape[axis]
        if size == 0 or step < least or (axis == 0 and least == x.stride(1)):
            return False
        least = step * size
    return x.stride(1) > 0
