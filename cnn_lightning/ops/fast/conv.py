"""Convolution: every output pixel is the weight times the patch of the input under it.

If the patches of a block of images are the columns of a matrix, the convolution and both of its gradients are matrix
products. Inside a block the batch is the last axis, ``(C, H, W, n)``: then the weight need not be rearranged, and the
rows of a patch are long runs of memory even for tiny images. The backward computes the columns again and does not save
them: they are larger than the input by the number of pixels of the kernel.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.expect import Geometry
from cnn_lightning.ops.fast import blocks, conv_batch_last, depthwise, matmul, memory, patches, tuning
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
        return conv_batch_last.forward(x, weight, bias, g)
    y = blocks.empty((g.n, g.o, g.oh, g.ow), like=x)
    if _is_pointwise(g):
        flat = weight.reshape(g.o, g.c)

        def images(part: slice) -> None:
            np.matmul(flat, _pixels(x[part]), out=_pixels(y[part]))
            if bias is not None:
                y[part] += bias[:, None, None]

        blocks.run(images, _parts(g, x))
        return _format_of(x, y)
    if _is_depthwise(g):
        depthwise.forward(x, weight, g, y)
        if not blocks.may_hold_nan(y):  # infinity times a zero of a band gives NaN, too: columns are exact
            if bias is not None:
                y += bias[:, None, None]
            return _format_of(x, y)

    matrix = weight.reshape(g.groups, g.o // g.groups, -1)

    def block(part: slice) -> None:
        columns = patches.columns_of(x[part], g)
        product = _scratch("product", (g.groups, g.o // g.groups, columns.shape[-1]), x)
        matmul.times_groups(matrix, columns, product, alone=len(parts) == 1)
        if bias is not None:
            product += bias.reshape(g.groups, -1, 1)
        y[part] = product.reshape(g.o, g.oh, g.ow, -1).transpose(3, 0, 1, 2)

    parts = _parts(g, x)
    blocks.run(block, parts)
    return _format_of(x, y)


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
        return conv_batch_last.backward(grad_y, x, weight, g, needs)
    need_x, need_weight, need_bias = needs
    grad_x = blocks.empty((g.n, g.c, g.h, g.w), like=x) if need_x else None
    matrix = weight.reshape(g.groups, g.o // g.groups, -1).swapaxes(1, 2)
    if _is_pointwise(g):
        return _pointwise_backward(grad_y, x, weight, g, grad_x, needs)
    grad_weight: Array | None
    if _is_depthwise(g):
        grad_weight = depthwise.backward(grad_y, x, weight, g, grad_x, need_weight)
        if grad_x is None or not blocks.may_hold_nan(grad_x):  # as in the forward
            grad_bias = bias_gradient(grad_y) if need_bias else None
            return None if grad_x is None else _format_of(x, grad_x), grad_weight, grad_bias

    def gradients(part: slice, *, of_x: bool, of_parameters: bool) -> tuple[Any, Any]:
        upstream = _scratch("upstream", (g.o, g.oh, g.ow, len(range(g.n)[part])), x)
        upstream[...] = grad_y[part].transpose(1, 2, 3, 0)
        upstream = upstream.reshape(g.groups, g.o // g.groups, -1)
        weight_part = bias_part = None
        if of_parameters and need_weight:
            columns = patches.columns_of(x[part], g)
            weight_part = _times_columns(upstream, columns, alone=alone)
        if of_parameters and need_bias:
            bias_part = upstream.sum(2).reshape(-1)
        if of_x and grad_x is not None:
            columns = _scratch("columns", (g.groups, matrix.shape[1], upstream.shape[-1]), x)
            matmul.times_groups(matrix, upstream, columns, alone=alone)
            patches.add_back(columns, g, grad_x[part])
        return weight_part, bias_part

    parts = _parts(g, x)
    apart = need_x and need_weight and len(parts) <= tuning.TUNING.conv_apart_blocks and _is_worth_threads(g)
    alone = len(parts) == 1 and not apart
    if apart:
        tasks = [partial(gradients, of_x=of_x, of_parameters=not of_x) for of_x in (False, True)]
        sums, _ = blocks.run_each(tasks, [slice(0, g.n)])
    else:
        sums = blocks.run(partial(gradients, of_x=True, of_parameters=True), parts)
    grad_weight = _total([w for w, _ in sums], weight, weight.shape) if need_weight else None
    grad_bias = _total([b for _, b in sums], weight, (g.o,)) if need_bias else None
    return None if grad_x is None else _format_of(x, grad_x), grad_weight, grad_bias


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
    """Sum of ``grad_y`` (N, O, H, W) over images and pixels, (O,).

    Summed in float64: in channels_last memory NumPy adds one pixel after the other, and thousands of such additions in
    float32 would have a visible rounding error.
    """
    total: Array = grad_y.sum((0, 2, 3), dtype=np.float64).astype(grad_y.dtype)
    return total


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


# ---- the matrix products


def _times_columns(upstream: Array, columns: Array, *, alone: bool) -> Array:
    """``upstream @ columns^T`` per group, with the factors in the order that is fastest."""
    small = columns.shape[1] * upstream.shape[1] < tuning.TUNING.conv_small_weight
    first, second = (columns, upstream) if small else (upstream, columns)
    result: Array = (
        matmul.times_transposed(first[0], second[0], alone=alone)[None]
        if len(first) == 1
        else np.matmul(first, second.swapaxes(1, 2))
    )
    if not small:
        return result
    turned = blocks.empty((result.shape[0], result.shape[2], result.shape[1]), like=result)
    turned[...] = result.swapaxes(1, 2)
    return turned


def _parts(g: Geometry, x: Array) -> list[slice]:
    rows, columns = g.c * g.kernel[0] * g.kernel[1], g.n * g.oh * g.ow
    heavy = _is_worth_threads(g) and columns >= tuning.TUNING.conv_columns
    return blocks.blocks(g.n, (rows + g.o) * g.oh * g.ow * x.dtype.itemsize, at_least=1 + heavy)


def _is_worth_threads(g: Geometry) -> bool:
    multiplications = g.c * g.kernel[0] * g.kernel[1] * g.o // g.groups * g.n * g.oh * g.ow
    return multiplications >= tuning.TUNING.product_threads


def _total(parts: list[Array], like: Array, shape: Sequence[int]) -> Array:
    """The sum of the results of the blocks; it may overwrite them, since they are new arrays."""
    if not parts:
        return np.zeros_like(like, shape=tuple(shape), order="C")
    total = parts[0].reshape(shape)
    for part in parts[1:]:
        total += part.reshape(shape)
    return total


def _scratch(name: str, shape: Sequence[int], like: Array) -> Array:
    return blocks.scratch(f"conv {name}", shape, like=like)


# ---- a 1x1 kernel needs no columns: the image is the matrix


def _is_pointwise(g: Geometry) -> bool:
    plain = g.kernel == g.stride == g.dilation == (1, 1) and g.groups == 1 and g.pad == ((0, 0), (0, 0))
    return plain and g.oh * g.ow >= tuning.TUNING.conv_pointwise_pixels


def _is_depthwise(g: Geometry) -> bool:
    return g.groups == g.c == g.o > 1 and g.w <= tuning.TUNING.depthwise_pixels


def _pixels(x: Array) -> Array:
    """(N, C, H * W)."""
    return x.reshape(x.shape[0], x.shape[1], x.shape[2] * x.shape[3])


def _pointwise_backward(
    grad_y: Array, x: Array, weight: Array, g: Geometry, grad_x: Array | None, needs: Sequence[bool]
) -> tuple[Array | None, Array | None, Array | None]:
    matrix = weight.reshape(g.o, g.c)

    def images(part: slice) -> tuple[Any, Any]:
        upstream = _pixels(grad_y[part])
        if grad_x is not None:
            np.matmul(matrix.T, upstream, out=_pixels(grad_x[part]))
        weight_part = np.matmul(upstream, _pixels(x[part]).swapaxes(1, 2)).sum(0) if needs[1] else None
        return weight_part, upstream.sum((0, 2)) if needs[2] else None

    sums = blocks.run(images, _parts(g, x))
    grad_weight = _total([w for w, _ in sums], weight, weight.shape) if needs[1] else None
    grad_bias = _total([b for _, b in sums], weight, (g.o,)) if needs[2] else None
    return None if grad_x is None else _format_of(x, grad_x), grad_weight, grad_bias


def _format_of(x: Array, y: Array) -> Array:
    """``y`` in the memory format of ``x``: channels_last if ``x`` is, contiguous otherwise."""
    of_image, of_channel, of_row, of_pixel = x.strides
    if x.shape[1] > 1 and x.itemsize == of_channel < of_pixel and of_row <= of_image:
        wide = blocks.empty((y.shape[0], *y.shape[2:], y.shape[1]), like=y)
        wide[...] = y.transpose(0, 2, 3, 1)
        return wide.transpose(0, 3, 1, 2)
    return y
