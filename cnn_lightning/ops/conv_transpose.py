"""Transposed convolution: the convolution's gradient for its input, run as a forward.

A convolution takes the patch under the kernel to one pixel; the transposed one spreads one pixel over the patch. As
matrices that is ``W^T`` where the convolution has ``W``, so that both directions here are directions of `conv`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cnn_lightning.ops import conv
from cnn_lightning.ops._geometry import Pair, pair
from cnn_lightning.ops._types import Array


def conv_transpose2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> Array:
    """Spread every pixel of ``x`` over a patch, weighted by ``weight``.

    Forward: ``y[n, o, u, v] = bias[o] + sum of weight[c, o, i, j] * x[n, c, p, q]`` over the channels ``c`` of ``o``'s
    group and all i, j, p, q with ``u = p*stride + i*dilation - padding``, ``v = q*stride + j*dilation - padding``.

    Args:
        x: Images (N, C, H, W).
        weight: Kernels (C, O / groups, kh, kw).
        bias: (O,) or None.
        stride: Step between the patches of neighbouring pixels, one number or (rows, columns).
        padding: Rows and columns cut off at every side of the result.
        output_padding: Rows and columns added at its bottom and right.
        groups: Number of independent groups of channels.
        dilation: Step between the pixels of a patch.

    Returns:
        (N, O, (H - 1)*stride - 2*padding + dilation*(kh - 1) + output_padding + 1, likewise the width).

    Raises:
        RuntimeError: Wrong number of axes, channels or groups, an output padding that is not smaller than stride or
            dilation, a result of negative size, dtypes that differ or are not floating.
    """
    g = _geometry(x, weight, bias, stride, padding, output_padding, groups, dilation)
    image = np.empty_like(x, shape=g.y_shape)  # its contents are never read: only shape, dtype and layout count
    y, _, _ = conv.conv2d_backward(_longer(x, g), image, weight, **g.options, needs=(True, False, False))
    assert y is not None
    if bias is not None:
        y += bias[:, None, None]
    return y


def conv_transpose2d_backward(
    grad_y: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    needs: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `conv_transpose2d`.

    ``grad_x`` is the convolution of ``grad_y`` with ``weight``; ``grad_weight`` is that convolution's gradient for its
    weight, with ``x`` as the upstream gradient; ``grad_bias = sum of grad_y over images and pixels``.

    Args:
        grad_y: Upstream gradient, shaped as the output (N, O, H', W').
        x: The forward's input (N, C, H, W).
        weight: The forward's kernels (C, O / groups, kh, kw).
        stride: As in the forward, like the options after it.
        padding: See `conv_transpose2d`.
        output_padding: See `conv_transpose2d`.
        groups: See `conv_transpose2d`.
        dilation: See `conv_transpose2d`.
        needs: Which of the three gradients are wanted.

    Returns:
        ``(grad_x, grad_weight, grad_bias)``, None for what is not needed.
    """
    g = _geometry(x, weight, None, stride, padding, output_padding, groups, dilation)
    grad_x: Array | None = None
    grad_weight: Array | None = None
    grad_bias: Array | None = None
    if needs[0]:
        every = conv.conv2d(grad_y, weight, **g.options)
        grad_x = every if g.surplus == (0, 0) else every[:, :, : x.shape[2], : x.shape[3]].copy()
    if needs[1]:
        _, grad_weight, _ = conv.conv2d_backward(_longer(x, g), grad_y, weight, **g.options, needs=(False, True, False))
    if needs[2]:
        grad_bias = conv.bias_gradient(grad_y)
    return grad_x, grad_weight, grad_bias


class _Geometry(NamedTuple):
    y_shape: tuple[int, int, int, int]
    options: dict[str, Any]
    surplus: tuple[int, int]
    """Patches of the matching convolution that lie wholly in the output padding: no pixel of ``x`` belongs to them."""


def _longer(x: Array, g: _Geometry) -> Array:
    """``x`` with a zero for each surplus patch."""
    if g.surplus == (0, 0):
        return x
    n, c, h, w = x.shape
    longer = np.zeros_like(x, shape=(n, c, h + g.surplus[0], w + g.surplus[1]))
    longer[:, :, :h, :w] = x
    return longer


def _pair(value: Pair, name: str, least: int) -> tuple[int, int]:
    numbers = pair(value, f"conv_transpose2d: {name}")
    if min(numbers) < least:
        raise RuntimeError(f"conv_transpose2d: {name}: expected at least {least}, got {value}")
    return numbers


def _geometry(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    groups: int,
    dilation: Pair,
) -> _Geometry:
    if x.ndim != 4 or weight.ndim != 4:
        name, wrong = ("x", x) if x.ndim != 4 else ("weight", weight)
        raise RuntimeError(f"conv_transpose2d: {name}: expected 4 axes, got shape {tuple(wrong.shape)}")
    for name, array in (("x", x), ("weight", weight), ("bias", bias)):
        if array is not None and (array.dtype.kind != "f" or array.dtype != x.dtype):
            wanted = "a floating dtype" if array.dtype.kind != "f" else f"x's dtype {x.dtype}"
            raise RuntimeError(f"conv_transpose2d: {name}: expected {wanted}, got {array.dtype}")
    (batch, c, *size), (channels, per_group, *kernel) = x.shape, weight.shape
    if groups < 1 or channels % groups:
        raise RuntimeError(f"conv_transpose2d: groups: expected a divisor of {channels} input channels, got {groups}")
    if c != channels:
        raise RuntimeError(f"conv_transpose2d: x: expected {channels} channels, got {c} in shape {tuple(x.shape)}")
    if min(*size, *kernel, channels, per_group) < 1:
        raise RuntimeError(
            "conv_transpose2d: x and weight: expected at least one pixel and channel, "
            f"got shapes {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (per_group * groups,):
        raise RuntimeError(f"conv_transpose2d: bias: expected shape ({per_group * groups},), got {tuple(bias.shape)}")
    steps, spread = _pair(stride, "stride", 1), _pair(dilation, "dilation", 1)
    cut, more = _pair(padding, "padding", 0), _pair(output_padding, "output_padding", 0)
    if any(m >= max(s, d) for m, s, d in zip(more, steps, spread, strict=True)):
        raise RuntimeError(
            f"conv_transpose2d: output_padding: expected less than stride {steps} or dilation {spread}, got {more}"
        )
    h, w = (
        (n - 1) * s - 2 * p + d * (k - 1) + m + 1
        for n, s, p, d, k, m in zip(size, steps, cut, spread, kernel, more, strict=True)
    )
    if min(h, w) < 0:
        raise RuntimeError(f"conv_transpose2d: padding: expected to leave an image, got {cut} for a result of {h}x{w}")
    options = {"stride": steps, "padding": cut, "dilation": spread, "groups": groups}
    return _Geometry((batch, per_group * groups, h, w), options, (more[0] // steps[0], more[1] // steps[1]))
