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
from cnn_lightning.ops.fast import conv, memory
from cnn_lightning.ops.taps import as_batch, frames, volumes
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


# ---- along one axis: images of one row


def conv_transpose1d(
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
    """`ops.conv_transpose.conv_transpose1d`."""
    options = expect.conv_transpose1d(x, weight, stride, padding, output_padding, dilation)._asdict()
    return conv_transpose2d(x[:, :, None], weight[:, :, None], bias, **options, groups=groups)[:, :, 0]


def conv_transpose1d_backward(
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
    """`ops.conv_transpose.conv_transpose1d_backward`."""
    options = expect.conv_transpose1d(x, weight, stride, padding, output_padding, dilation)._asdict()
    grad_x, grad_weight, grad_bias = conv_transpose2d_backward(
        grad_y[:, :, None], x[:, :, None], weight[:, :, None], **options, groups=groups, needs=needs
    )
    return (
        None if grad_x is None else grad_x[:, :, 0],
        None if grad_weight is None else grad_weight[:, :, 0],
        grad_bias,
    )


# ---- of volumes: images for each depth tap of the kernel


def conv_transpose3d(
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
    """`ops.conv_transpose.conv_transpose3d`."""
    g = expect.conv_transpose3d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    depth, *image = g.shape
    images, deep = as_batch(frames(x)), np.zeros_like(x, shape=(depth + sum(g.pad), *image))
    for i, under in enumerate(g.under):
        deep[under] += conv_transpose2d(images, weight[:, :, i], **g.options).reshape(deep[under].shape)
    if bias is not None:
        deep += bias[:, None, None]
    return memory.copy_in_format(x, volumes(deep, g.pad))


def conv_transpose3d_backward(
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
    """`ops.conv_transpose.conv_transpose3d_backward`."""
    g = expect.conv_transpose3d(x, weight, None, stride, padding, output_padding, groups, dilation)
    x_frames, upstream = frames(x), frames(grad_y, g.pad)
    grad_frames, grad_weight = np.zeros_like(x_frames), np.zeros_like(weight)
    for i, under in enumerate(g.under):
        pair = as_batch(upstream[under]), as_batch(x_frames)
        of_images, of_weight, _ = conv_transpose2d_backward(
            *pair, weight[:, :, i], **g.options, needs=(*needs[:2], False)
        )
        if of_images is not None:
            grad_frames += of_images.reshape(x_frames.shape)
        if of_weight is not None:
            grad_weight[:, :, i] = of_weight
    grad_x = memory.copy_in_format(grad_y, volumes(grad_frames)) if needs[0] else None
    grad_bias = conv.bias_gradient(as_batch(frames(grad_y))) if needs[2] else None
    return grad_x, grad_weight if needs[1] else None, grad_bias
