"""Depthwise convolution (one kernel per channel), as products with banded matrices along the width.

With one input and one output channel, `conv2d` has only one row of a matrix to multiply by: it would write and read a
column for nine products. But one row of the kernel, moved along one row of the image, is a matrix product, too:
``x_row @ band`` with ``band[v * stride + j * dilation - left, v] = weight[j]``. All rows of all images of a channel are
multiplied by the same band. This multiplies the zeros of the band, too; with BLAS it is still faster than columns for
rows of up to about a hundred pixels.

Zero times infinity is NaN, so that one infinity makes a whole row NaN: do not use a result that has a NaN.
"""

import numpy as np

from cnn_lightning.ops.expect import Geometry
from cnn_lightning.ops.fast import blocks, tuning
from cnn_lightning.ops.types import Array


def forward(x: Array, weight: Array, g: Geometry, y: Array) -> None:
    """Write the convolution of ``x`` (N, C, H, W) with ``weight`` (C, 1, kh, kw) into ``y`` (N, C, H', W')."""

    def block(part: slice) -> None:
        rows, bands = _rows(x[:, part], g), _bands(weight[part, 0], g)
        total = blocks.scratch("depthwise output", (rows.shape[0], g.oh, g.n, g.ow), like=x)
        product = blocks.scratch("depthwise product", total.shape, like=x)
        for i in range(g.kernel[0]):
            np.matmul(_under(rows, i, g), bands[:, i, None], out=total if i == 0 else product)
            if i:
                total += product
        y[:, part] = total.transpose(2, 0, 1, 3)

    blocks.run(block, _parts(g, x), parallel=_is_worth_threads(g, x))


def backward(
    grad_y: Array, x: Array, weight: Array, g: Geometry, grad_x: Array | None, need_weight: bool
) -> Array | None:
    """Write the gradient of ``x`` into ``grad_x`` (unless None) and return that of the weight.

    ``grad_row = grad_y_row @ band^T``; the gradient of a band is ``x_row^T @ grad_y_row``, and the weight's is its sum
    along each diagonal.
    """
    grad_weight = blocks.empty(weight.shape, like=weight) if need_weight else None
    (top, _), _ = g.pad

    def block(part: slice) -> None:
        channels = len(range(g.c)[part])
        upstream = blocks.scratch("depthwise output", (channels, g.oh, g.n, g.ow), like=x)
        upstream[...] = grad_y[:, part].transpose(1, 2, 0, 3)
        if grad_weight is not None:
            rows = _rows(x[:, part], g)
            flat = upstream.reshape(channels, g.oh * g.n, g.ow)
            for i in range(g.kernel[0]):
                under = _under(rows, i, g).reshape(channels, g.oh * g.n, g.w)
                grad_weight[part, 0, i] = _along_diagonals(np.matmul(under.swapaxes(1, 2), flat), g)
        if grad_x is not None:
            bands = _bands(weight[part, 0], g).swapaxes(2, 3)
            rows = blocks.scratch("depthwise rows", (channels, g.h + sum(g.pad[0]), g.n, g.w), like=x)
            rows[...] = 0
            product = blocks.scratch("depthwise product", (channels, g.oh, g.n, g.w), like=x)
            for i in range(g.kernel[0]):
                np.matmul(upstream, bands[:, i, None], out=product)
                target = _under(rows, i, g)
                target += product
            grad_x[:, part] = rows[:, top : top + g.h].transpose(2, 0, 1, 3)

    blocks.run(block, _parts(g, x), parallel=_is_worth_threads(g, x))
    return grad_weight


def _is_worth_threads(g: Geometry, x: Array) -> bool:
    return g.n * g.o * g.oh * g.ow * x.itemsize >= tuning.TUNING.depthwise_threads_bytes


def _parts(g: Geometry, x: Array) -> list[slice]:
    """Blocks of channels, since channels are independent."""
    return blocks.blocks(g.c, 3 * g.n * (g.h + g.kernel[0]) * g.w * x.itemsize)


def _rows(x: Array, g: Geometry) -> Array:
    """Channels (n, C, H, W) as (C, H + padding, n, W): rows of zeros above and below, none at the sides."""
    (top, bottom), _ = g.pad
    rows = blocks.scratch("depthwise rows", (x.shape[1], g.h + top + bottom, g.n, g.w), like=x)
    rows[:, :top] = 0
    rows[:, top + g.h :] = 0
    rows[:, top : top + g.h] = x.transpose(1, 2, 0, 3)
    return rows


def _under(rows: Array, i: int, g: Geometry) -> Array:
    """The rows (C, H', n, W) of the image under row ``i`` of the kernel."""
    first, step = i * g.dilation[0], g.stride[0]
    return rows[:, first : first + step * g.oh : step]


def _bands(weight: Array, g: Geometry) -> Array:
    """The rows of the kernel (C, kh, kw) as bands (C, kh, W, W'), without the pixels outside the image."""
    bands = np.zeros_like(weight, shape=(*weight.shape[:2], g.w * g.ow), order="C")
    for j, diagonal in enumerate(_diagonals(g)):
        bands[:, :, diagonal] = weight[:, :, j, None]
    return bands.reshape(*weight.shape[:2], g.w, g.ow)


def _along_diagonals(grad_bands: Array, g: Geometry) -> Array:
    """The adjoint of `_bands` for one kernel row: (C, W, W') to (C, kw)."""
    flat = grad_bands.reshape(grad_bands.shape[0], g.w * g.ow)
    return np.stack([flat[:, diagonal].sum(1) for diagonal in _diagonals(g)], axis=1)


def _diagonals(g: Geometry) -> list[slice]:
    """The places of each kernel column j in a flat band: for output v at pixel u = v*stride + j*dilation - left."""
    step, (left, _) = g.stride[1], g.pad[1]
    found = []
    for j in range(g.kernel[1]):
        offset = j * g.dilation[1] - left
        first = max(0, -(offset // step))
        count = max(0, min(g.ow - 1, (g.w - 1 - offset) // step) - first + 1)
        start, stride = (first * step + offset) * g.ow + first, step * g.ow + 1
        found.append(slice(start, start + count * stride, stride) if count else slice(0))
    return found
