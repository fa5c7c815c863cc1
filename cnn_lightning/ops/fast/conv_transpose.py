"""Transposed convolution: the adjoint of convolution, as a forward.

A convolution computes one pixel from the patch under the kernel. The transposed convolution adds one pixel, times the
kernel, to the patch: its matrix is ``W^T`` if that of the convolution is ``W``. Therefore `conv` computes forward and
backward here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.expect import Transposed
from cnn_lightning.ops.fast import conv
from cnn_lightning.ops.types import Array, Pair


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
    """`ops.conv_transpose.conv_transpose2d`."""
    g = expect.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    image = np.empty_like(x, shape=g.shape)  # only its shape, dtype and layout are used
    y, _, _ = conv.conv2d_backward(_longer(x, g), image, weight, **_options(g, groups), needs=(True, False, False))
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
    """`ops.conv_transpose.conv_transpose2d_backward`."""
    g = expect.conv_transpose2d(x, weight, None, stride, padding, output_padding, groups, dilation)
    grad_x: Array | None = None
    grad_weight: Array | None = None
    grad_bias: Array | None = None
    if needs[0]:
        every = conv.conv2d(grad_y, weight, **_options(g, groups))
        grad_x = every if _surplus(g) == (0, 0) else every[:, :, : x.shape[2], : x.shape[3]].copy("K")
    if needs[1]:
        _, grad_weight, _ = conv.conv2d_backward(
            _longer(x, g), grad_y, weight, **_options(g, groups), needs=(False, True, False)
        )
    if needs[2]:
        grad_bias = conv.bias_gradient(grad_y)
    return grad_x, grad_weight, grad_bias


def _options(g: Transposed, groups: int) -> dict[str, Any]:
    """Options of the convolution from the output to the input."""
    (rows, _), (columns, _) = g.pad
    return {"stride": g.stride, "padding": (rows, columns), "dilation": g.dilation, "groups": groups}


def _surplus(g: Transposed) -> tuple[int, int]:
    """The number of patches of that convolution inside the output padding, which belong to no pixel of ``x``."""
    return g.output_padding[0] // g.stride[0], g.output_padding[1] // g.stride[1]


def _longer(x: Array, g: Transposed) -> Array:
    """``x`` with a zero for each surplus patch."""
    if _surplus(g) == (0, 0):
        return x
    n, c, h, w = x.shape
    longer = np.zeros_like(x, shape=(n, c, h + _surplus(g)[0], w + _surplus(g)[1]))
    longer[:, :, :h, :w] = x
    return longer
