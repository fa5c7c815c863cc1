"""Convolution in any memory format: blocks of images for `conv_pixels`, which computes.

Batch-last images are one block as they are. Others become (C, H, W, n) for each block of n images in turn, which stay
in cache.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.expect import Geometry
from cnn_lightning.ops.fast import blocks, conv_pixels, memory, tuning
from cnn_lightning.ops.fast.memory import images, pixels
from cnn_lightning.ops.taps import as_batch, frames, volumes
from cnn_lightning.ops.types import Array, Padding, Pair


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Array:
    """`ops.conv.conv2d`."""
    g = _geometry(x, weight, bias, stride, padding, dilation, groups)
    if memory.is_batch_last(x):
        y = memory.empty((g.n, g.o, g.oh, g.ow), like=x)
        conv_pixels.forward(pixels(x), weight, bias, g, pixels(y))
        return y
    y = memory.empty_in_format(x, (g.n, g.o, g.oh, g.ow))
    if not x.size:
        y[...] = 0 if bias is None else bias[:, None, None]
        return y

    def block(part: slice) -> None:
        some = _of_images(g, part.stop - part.start)
        out = blocks.scratch("conv output", (g.o, g.oh, g.ow, some.n), like=x)
        conv_pixels.forward(pixels(x[part]), weight, bias, some, out)
        y[part] = images(out)

    blocks.run(block, _parts(g, x))
    return y


def conv2d_backward(
    grad_y: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    needs: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """`ops.conv.conv2d_backward`."""
    g = _geometry(x, weight, None, stride, padding, dilation, groups)
    if memory.is_batch_last(x):
        return _backward_of_block(grad_y, x, weight, g, memory.empty(x.shape, like=x) if needs[0] else None, needs)
    grad_x = memory.empty_in_format(x, x.shape) if needs[0] else None
    if not x.size:
        return grad_x, np.zeros_like(weight) if needs[1] else None, bias_gradient(grad_y) if needs[2] else None

    def block(part: slice) -> tuple[Any, Any]:
        some = _of_images(g, part.stop - part.start)
        to_x = images(blocks.scratch("conv gradient", (g.c, g.h, g.w, some.n), like=x)) if needs[0] else None
        _, *sums = _backward_of_block(grad_y[part], x[part], weight, some, to_x, needs)
        if grad_x is not None:
            grad_x[part] = to_x
        return sums[0], sums[1]

    sums = zip(*blocks.run(block, _parts(g, x)), strict=True)
    grad_weight, grad_bias = (
        conv_pixels.total(each) if need else None for each, need in zip(sums, needs[1:], strict=True)
    )
    return grad_x, grad_weight, grad_bias


def _backward_of_block(
    grad_y: Array, x: Array, weight: Array, g: Geometry, grad_x: Array | None, needs: Sequence[bool]
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients, that of ``x`` in the batch-last ``grad_x``."""
    upstream = memory.packed(grad_y, "conv upstream")
    grad_weight = blocks.empty(weight.shape, like=weight) if needs[1] else None
    conv_pixels.backward(upstream, pixels(x), weight, g, None if grad_x is None else pixels(grad_x), grad_weight)
    return grad_x, grad_weight, conv_pixels.bias_gradient(upstream) if needs[2] else None


def _parts(g: Geometry, x: Array) -> list[slice]:
    rows = g.c * g.kernel[0] * g.kernel[1]
    return blocks.blocks(g.n, (rows + g.o) * g.oh * g.ow * x.itemsize)


@lru_cache(1024)
def _of_images(g: Geometry, n: int) -> Geometry:
    """``g`` for so many images."""
    return g._replace(n=n)


_geometries: dict[Any, Geometry] = {}


def _geometry(
    x: Array, weight: Array, bias: Array | None, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Geometry:
    """`expect.conv2d`, once for all calls with these shapes, dtypes and options: it takes 20 us.

    Options count by their text, in which 1, 1.0 and True differ.
    """
    options = f"{stride!r} {padding!r} {dilation!r} {groups!r}"
    of_bias = None if bias is None else (bias.shape, bias.dtype)
    key = x.shape, x.dtype, weight.shape, weight.dtype, of_bias, options
    found = _geometries.get(key)
    if found is None:
        found = expect.conv2d(x, weight, bias, stride, padding, dilation, groups)
        if len(_geometries) >= tuning.TUNING.kept_geometries:
            _geometries.clear()
        _geometries[key] = found
    return found


def bias_gradient(grad_y: Array) -> Array:
    """`ops.conv.bias_gradient`."""
    return conv_pixels.bias_gradient(memory.packed(grad_y, "conv upstream"))


# ---- along one axis: images of one row


def conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Array:
    """`ops.conv.conv1d`."""
    options = expect.conv1d(x, weight, stride, padding, dilation)._asdict()
    return conv2d(x[:, :, None], weight[:, :, None], bias, **options, groups=groups)[:, :, 0]


def conv1d_backward(
    grad_y: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    needs: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """`ops.conv.conv1d_backward`."""
    options = expect.conv1d(x, weight, stride, padding, dilation)._asdict()
    grad_x, grad_weight, grad_bias = conv2d_backward(
        grad_y[:, :, None], x[:, :, None], weight[:, :, None], **options, groups=groups, needs=needs
    )
    return (
        None if grad_x is None else grad_x[:, :, 0],
        None if grad_weight is None else grad_weight[:, :, 0],
        grad_bias,
    )


# ---- of volumes: images for each depth tap of the kernel


def conv3d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Array:
    """`ops.conv.conv3d`."""
    g = expect.conv3d(x, weight, bias, stride, padding, dilation, groups)
    depth, n, *image = g.shape
    y, deep = memory.empty_in_format(x, (n, image[0], depth, *image[1:])), frames(x, g.pad)
    y_frames = y.transpose(2, 0, 1, 3, 4)
    for i, under in enumerate(g.under):
        of_tap = conv2d(as_batch(deep[under]), weight[:, :, i], None if i else bias, **g.options).reshape(g.shape)
        if i:
            y_frames += of_tap
        else:
            y_frames[...] = of_tap
    return y


def conv3d_backward(
    grad_y: Array,
    x: Array,
    weight: Array,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
    needs: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """`ops.conv.conv3d_backward`."""
    g = expect.conv3d(x, weight, None, stride, padding, dilation, groups)
    deep, upstream = frames(x, g.pad), as_batch(frames(grad_y))
    grad_deep, grad_weight = np.zeros_like(deep), np.zeros_like(weight)
    for i, under in enumerate(g.under):
        images = as_batch(deep[under])
        of_images, of_weight, _ = conv2d_backward(
            upstream, images, weight[:, :, i], **g.options, needs=(*needs[:2], False)
        )
        if of_images is not None:
            grad_deep[under] += of_images.reshape(grad_deep[under].shape)
        if of_weight is not None:
            grad_weight[:, :, i] = of_weight
    grad_x = memory.copy_in_format(x, volumes(grad_deep, g.pad)) if needs[0] else None
    return grad_x, grad_weight if needs[1] else None, bias_gradient(upstream) if needs[2] else None
