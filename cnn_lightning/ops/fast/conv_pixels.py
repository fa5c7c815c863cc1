"""Convolution of images that are (C, H, W, N) in memory: no array is transposed, and rows of images are long runs.

If the patches of the images are the columns of a matrix, the convolution and both of its gradients are matrix products.
The backward computes the columns again and does not save them: they are larger than the input by the number of pixels
of the kernel. A block of columns is made of some rows of the output, or of some channels of the input. Blocks depend
on the sizes alone, so that results are the same for any number of threads.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from cnn_lightning.ops.expect import Geometry
from cnn_lightning.ops.fast import blocks, depthwise, matmul, memory, patches, tuning
from cnn_lightning.ops.fast.sums import row_sums
from cnn_lightning.ops.types import Array


def forward(x: Array, weight: Array, bias: Array | None, g: Geometry, y: Array) -> None:
    """Write the convolution of ``x`` (C, H, W, N) with ``weight`` into the contiguous ``y`` (O, H', W', N)."""
    out = y.reshape(g.groups, g.o // g.groups, -1)
    if not (_is_depthwise(g) and depthwise.forward(_packed(x), weight, g, y)):
        _forward(x, weight.reshape(g.groups, g.o // g.groups, -1), g, out)
    if bias is not None:
        out += bias.reshape(g.groups, -1, 1)


def backward(grad_y: Array, x: Array, weight: Array, g: Geometry, grad_x: Array | None, grad_w: Array | None) -> None:
    """Write the gradients of ``x`` and ``weight``, unless None, in their shapes; all but ``x`` are contiguous."""
    done = _is_depthwise(g) and depthwise.backward(grad_y, _packed(x), weight, g, grad_x, grad_w)
    if not done and grad_x is not None and grad_w is not None and _may_flip(weight, g):
        done = _backward_flipped(grad_y, _packed(x), weight, g, grad_x, grad_w)
    if not done:
        _backward(grad_y, x, weight, g, grad_x, grad_w)


def bias_gradient(grad_y: Array) -> Array:
    """Sum of ``grad_y`` (O, H', W', N) over pixels and images, (O,)."""
    return row_sums(grad_y.reshape(len(grad_y), -1)).astype(grad_y.dtype)


def _packed(x: Array) -> Array:
    return memory.packed(memory.images(x), "conv packed")


def _is_depthwise(g: Geometry) -> bool:
    return g.groups == g.c == g.o > 1


# ---- forward


def _forward(x: Array, matrix: Array, g: Geometry, y: Array) -> None:
    """Write ``matrix`` (groups, O / groups, K) times the columns of ``x`` into ``y`` (groups, O / groups, H' W' N)."""
    numbers, length = tuning.TUNING, g.ow * g.n
    if g.oh * length < 2 * numbers.conv_strip and g.groups == 1:
        columns = _columns(x, g)[0]
        halves = blocks.cut(g.o, 2 if _is_heavy(g) else 1, even=False)
        blocks.run(lambda part: np.matmul(matrix[0, part], columns, out=y[0, part]), halves)
        return
    rows = matrix.shape[0] * matrix.shape[2]
    count = min(_count(g.oh * length * rows * x.itemsize, heavy=_is_heavy(g)), g.oh * length // numbers.conv_strip)

    def block(part: slice) -> None:
        strip, inside = _strip(g, part.start, part.stop)
        matmul.times_groups(matrix, _columns(x[:, inside], strip), y[..., part.start * length : part.stop * length])

    blocks.run(block, blocks.cut(g.oh, count, even=count > 1))


def _columns(x: Array, g: Geometry) -> Array:
    """The columns (groups, K, H' W' N) of the image: itself if the kernel is one pixel."""
    if g.kernel == g.stride == (1, 1) and g.pad == ((0, 0), (0, 0)) and x[0].flags.c_contiguous:
        return x.reshape(g.groups, g.c // g.groups, -1)  # a view, also of some rows
    return patches.columns_of(memory.images(x), g)


@lru_cache(1024)
def _strip(g: Geometry, first: int, stop: int) -> tuple[Geometry, slice]:
    """The geometry of some rows of the output, and the rows of the image that they read."""
    (top, _), sides = g.pad
    begin = first * g.stride[0] - top
    end = (stop - 1) * g.stride[0] - top + g.dilation[0] * (g.kernel[0] - 1) + 1
    inside = slice(min(max(0, begin), g.h), min(max(0, end), g.h))
    above = min(max(0, -begin), end - begin)
    pad = (above, end - begin - above - (inside.stop - inside.start)), sides
    return g._replace(h=inside.stop - inside.start, oh=stop - first, pad=pad), inside


def _is_heavy(g: Geometry) -> bool:
    """Whether threads pay for the product."""
    products = g.c * g.kernel[0] * g.kernel[1] * g.o // g.groups * g.n * g.oh * g.ow
    return products >= tuning.TUNING.product_threads


def _count(nbytes: int, *, heavy: bool) -> int:
    """Blocks for so many bytes of columns; at least two if threads pay."""
    return max(1 + heavy, -(-nbytes // tuning.TUNING.conv_column_bytes))


# ---- backward


def _backward(grad_y: Array, x: Array, weight: Array, g: Geometry, grad_x: Array | None, grad_w: Array | None) -> None:
    """Write both gradients, each by blocks of channels of the input; the two are tasks of two threads."""
    if g.groups > 1:
        return _backward_grouped(grad_y, x, weight, g, grad_x, grad_w)
    if grad_x is None and grad_w is not None and weight.size < tuning.TUNING.conv_turned_weight:
        return _backward_of_weight(grad_y, x, g, grad_w)
    taps, matrix, upstream = g.kernel[0] * g.kernel[1], weight.reshape(g.o, -1), grad_y.reshape(g.o, -1)
    to_w = None if grad_w is None else grad_w.reshape(g.o, -1)
    numbers, heavy = tuning.TUNING, _is_heavy(g)
    is_small = weight.size < min(numbers.conv_turned_weight, numbers.conv_turned_columns * upstream.shape[1])

    def of_weight(part: slice) -> None:
        assert to_w is not None
        columns = _columns(x[part], _of_channels(g, part.stop - part.start))[0]
        to_part = to_w[:, part.start * taps : part.stop * taps]
        if is_small:
            to_part[...] = matmul.times_transposed(columns, upstream).T
        else:
            np.matmul(upstream, columns.T, out=to_part)

    def of_x(part: slice) -> None:
        assert grad_x is not None
        some = matrix[:, part.start * taps : part.stop * taps].T
        if g.kernel == g.stride == (1, 1) and g.pad == ((0, 0), (0, 0)):
            matmul.times(some, upstream, grad_x[part].reshape(part.stop - part.start, -1))
            return
        columns = blocks.scratch("conv columns", (len(some), upstream.shape[1]), like=x)
        matmul.times(some, upstream, columns)
        patches.add_back(columns, _of_channels(g, part.stop - part.start), memory.images(grad_x[part]))

    tasks: list[Callable[[slice], None]] = [of_weight] * (to_w is not None) + [of_x] * (grad_x is not None)
    nbytes = matrix.shape[1] * upstream.shape[1] * x.itemsize
    count = 1 if taps == 1 else _count(nbytes, heavy=heavy and len(tasks) == 1)
    blocks.run_each(tasks, blocks.cut(g.c, min(count, g.c), even=count > 1), parallel=heavy)


@lru_cache(1024)
def _of_channels(g: Geometry, c: int) -> Geometry:
    """``g`` for so many channels of the input."""
    return g._replace(c=c)


def _backward_of_weight(grad_y: Array, x: Array, g: Geometry, grad_w: Array) -> None:
    """Write the gradient of a small weight, by blocks of rows of the output: a first layer has few channels."""
    upstream, length, heavy = grad_y.reshape(g.o, -1), g.ow * g.n, _is_heavy(g)

    def block(part: slice) -> Array:
        strip, inside = _strip(g, part.start, part.stop)
        at = slice(part.start * length, part.stop * length)
        return matmul.times_transposed(_columns(x[:, inside], strip)[0], upstream[:, at])

    count = min(_count(grad_w[0].size * upstream.shape[1] * x.itemsize, heavy=heavy), g.oh)
    grad_w.reshape(g.o, -1)[...] = total(blocks.run(block, blocks.cut(g.oh, count, even=count > 1), parallel=heavy)).T


def total(parts: Sequence[Array]) -> Array:
    """The sum of the results of blocks, in the first of them."""
    first, *others = parts
    for other in others:
        first += other
    return first


def _backward_grouped(
    grad_y: Array, x: Array, weight: Array, g: Geometry, grad_x: Array | None, grad_w: Array | None
) -> None:
    """`_backward` by blocks of groups."""
    inside, outside = g.c // g.groups, g.o // g.groups
    matrices, upstream = weight.reshape(g.groups, outside, -1), grad_y.reshape(g.groups, outside, -1)

    def block(part: slice) -> None:
        channels = slice(part.start * inside, part.stop * inside)
        some = g._replace(groups=part.stop - part.start, c=channels.stop - channels.start)
        if grad_w is not None:
            columns = _columns(x[channels], some)
            to_w = grad_w.reshape(matrices.shape)[part]
            to_w[...] = np.matmul(columns, upstream[part].swapaxes(1, 2)).swapaxes(1, 2)
        if grad_x is not None:
            columns = blocks.scratch("conv columns", (*matrices[part].shape[::2], upstream.shape[2]), like=x)
            np.matmul(matrices[part].swapaxes(1, 2), upstream[part], out=columns)
            patches.add_back(columns, some, memory.images(grad_x[channels]))

    heavy = _is_heavy(g)
    count = _count(weight.size // outside * upstream.shape[2] * x.itemsize, heavy=heavy)
    blocks.run(block, blocks.cut(g.groups, min(count, g.groups), even=count > 1), parallel=heavy)


def _may_flip(weight: Array, g: Geometry) -> bool:
    """Whether the gradient of the input is to be a convolution of ``grad_y`` with the flipped kernel.

    It needs padding with zeros, which must not meet an infinite weight.
    """
    return (
        g.stride == g.dilation == (1, 1)
        and g.groups == 1
        and g.kernel != (1, 1)
        and weight.size <= tuning.TUNING.conv_flipped_weight
        and all(max(pad) < kernel for pad, kernel in zip(g.pad, g.kernel, strict=True))
        and blocks.is_finite(weight)
    )


def _backward_flipped(grad_y: Array, x: Array, weight: Array, g: Geometry, grad_x: Array, grad_w: Array) -> bool:
    """Write both gradients from one set of columns, those of ``grad_y``; return False if there is NaN in the weight's.

    With ``i' = kh - 1 - i`` and the rows ``r = u + i - top`` that the output row u reads::

        grad_x[c, r] = sum over o, i' of weight[o, c, i] * grad_y[o, r + i' - (kh - 1 - top)]
        grad_w[o, c, i] = sum over r of x[c, r] * grad_y[o, r + i' - (kh - 1 - top)]

    There a zero of the padding meets each border pixel of ``x``, which gives NaN if that is infinite.
    """
    (top, bottom), (left, right) = g.pad
    down, across = g.kernel[0] - 1, g.kernel[1] - 1
    pad = (down - top, down - bottom), (across - left, across - right)
    h = Geometry(g.n, g.o, g.oh, g.ow, g.c, 1, g.kernel, (1, 1), (1, 1), pad, g.h, g.w)
    flipped = np.ascontiguousarray(weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)).reshape(g.c, -1)
    flat, to_x, length = x.reshape(g.c, -1), grad_x.reshape(g.c, -1), g.w * g.n

    def block(part: slice) -> Array:
        strip, inside = _strip(h, part.start, part.stop)
        columns, at = _columns(grad_y[:, inside], strip)[0], slice(part.start * length, part.stop * length)
        matmul.times(flipped, columns, to_x[:, at])
        return matmul.times_transposed(columns, flat[:, at])

    heavy = _is_heavy(g)
    count = min(_count(flipped.shape[1] * flat.shape[1] * x.itemsize, heavy=heavy), h.oh)
    turned = total(blocks.run(block, blocks.cut(h.oh, count, even=count > 1), parallel=heavy))
    if blocks.may_hold_nan(turned):
        return False
    grad_w[...] = turned.reshape(g.o, *g.kernel, g.c)[:, ::-1, ::-1].transpose(0, 3, 1, 2)
    return True
