"""Convolution, ReLU and 2x2 max-pooling of a block of images while it is still in cache.

Layer by layer, each of the three writes a whole batch to memory and reads it back, forward and backward. Here the
convolution's output never leaves the cache; what is kept for the backward is four comparisons for each pooled pixel.

Two facts make it short. A maximum commutes with ReLU, so that ReLU works on the pooled quarter. And with the outputs
sorted by their place in the pooling window (four *phases*, each a contiguous array), pooling is three maxima of whole
arrays, with no strided access at all.
"""

from collections.abc import Sequence

import numpy as np

from cnn_lightning.ops import _blocks
from cnn_lightning.ops._types import Array


def conv_relu_pool(x: Array, weight: Array, bias: Array | None, *, padding: int = 0) -> tuple[Array, Array]:
    """``max_pool2d(relu(conv2d(x, weight, bias, padding=padding)), 2)``.

    Args:
        x: Images (N, C, H, W).
        weight: Kernels (O, C, kh, kw), stride 1.
        bias: (O,) or None.
        padding: Zeros around the image.

    Returns:
        ``(y, winners)``: the pooled output (N, O, h, w) with ``h = (H + 2*padding - kh + 1) // 2``, and for each of
        its pixels four comparisons (flat, block by block): did the right pixel of the upper pair win, that of the
        lower pair, did the lower pair, and did ReLU stop it. Ties go to the first, and NaN wins, as in `max_pool2d`.
    """
    g = _Stage(x, weight, padding)
    y = _blocks.empty((g.n, g.o, g.h, g.w), like=x)
    winners = _blocks.empty((4 * g.o * g.h * g.w * g.n,), like=x, dtype=bool)
    matrix = weight.reshape(g.o, -1)
    if bias is not None:
        matrix = np.concatenate([matrix, bias[:, None]], axis=1)

    def block(part: slice) -> None:
        columns = g.columns(x[part], with_ones=bias is not None)
        n = part.stop - part.start
        phases = g.scratch("product", (g.o, 4, g.h * g.w * n))
        np.matmul(matrix, columns, out=phases.reshape(g.o, -1))
        upper = g.scratch("upper", (g.o, g.h * g.w * n))
        lower = g.scratch("lower", upper.shape)
        np.maximum(phases[:, 0], phases[:, 1], out=upper)
        np.maximum(phases[:, 2], phases[:, 3], out=lower)
        right_of_upper, right_of_lower, is_lower, stopped = g.winners(winners, part)
        np.greater(phases[:, 1], phases[:, 0], out=right_of_upper)
        np.greater(phases[:, 3], phases[:, 2], out=right_of_lower)
        np.greater(lower, upper, out=is_lower)
        np.maximum(upper, lower, out=upper)
        np.less_equal(upper, 0, out=stopped)
        np.maximum(upper, 0, out=upper)
        if np.isnan(upper.max(initial=0)):
            right_of_upper |= np.isnan(phases[:, 1])
            right_of_lower |= np.isnan(phases[:, 3])
            is_lower |= np.isnan(lower)
        y[part] = upper.reshape(g.o, g.h, g.w, n).transpose(3, 0, 1, 2)

    _blocks.run(block, g.parts(), like=x)
    return y, winners


def conv_relu_pool_backward(
    grad_y: Array,
    x: Array,
    weight: Array,
    winners: Array,
    *,
    padding: int = 0,
    needs: Sequence[bool] = (True, True, True),
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `conv_relu_pool` with respect to x, weight and bias.

    The upstream gradient passes where the output is not <= 0 (ReLU) and goes to the one pixel of each window that won
    (pooling); then ``grad_weight = G X^T``, ``grad_x`` from ``W^T G`` as in `conv2d_backward`.
    """
    g = _Stage(x, weight, padding)
    need_x, need_weight, need_bias = needs
    grad_x = _blocks.empty(x.shape, like=x) if need_x else None
    matrix = weight.reshape(g.o, -1).T

    def block(part: slice) -> Array | None:
        n = part.stop - part.start
        gradient = g.scratch("upper", (g.o, g.h, g.w, n))
        gradient[...] = grad_y[part].transpose(1, 2, 3, 0)
        upstream = g.route(gradient.reshape(g.o, -1), g.winners(winners, part))
        weight_and_bias = None
        if need_weight:
            columns = g.columns(x[part], with_ones=need_bias)
            weight_and_bias = np.matmul(columns, upstream.T)
        elif need_bias:
            weight_and_bias = upstream.sum(1)[None]
        if grad_x is not None:
            columns = g.scratch("columns", (g.rows, upstream.shape[1]))
            np.matmul(matrix, upstream, out=columns)
            g.add_back(columns, grad_x[part])
        return weight_and_bias

    parts = _blocks.run(block, g.parts(), like=x)
    grad_weight = grad_bias = None
    if need_weight or need_bias:
        total = np.zeros((g.rows * need_weight + need_bias, g.o), x.dtype)
        for part in parts:
            total += part
        grad_weight = np.ascontiguousarray(total[: g.rows].T).reshape(weight.shape) if need_weight else None
        grad_bias = total[-1].copy() if need_bias else None
    return grad_x, grad_weight, grad_bias


class _Stage:
    """Shapes of one stage, and a block's images as phases and columns.

    The padded image is kept as four phases too, ``(C, 2, 2, h', w', n)``: rows and columns of either parity. Kernel
    pixel (i, j) of window pixel (p, q) then reads phase ``((p + i) % 2, (q + j) % 2)`` from row ``(p + i) // 2`` and
    column ``(q + j) // 2`` on, in runs of ``w * n``.
    """

    def __init__(self, x: Array, weight: Array, padding: int) -> None:
        self.like, self.padding = x, padding
        self.n, self.c = x.shape[:2]
        self.o, _, self.kh, self.kw = weight.shape
        self.rows = self.c * self.kh * self.kw
        self.h = (x.shape[2] + 2 * padding - self.kh + 1) // 2
        self.w = (x.shape[3] + 2 * padding - self.kw + 1) // 2

    def scratch(self, name: str, shape: Sequence[int]) -> Array:
        return _blocks.scratch(f"fused {name}", shape, like=self.like)

    def parts(self) -> list[slice]:
        return _blocks.blocks(self.n, 4 * (self.rows + self.o) * self.h * self.w * self.like.itemsize)

    def winners(self, winners: Array, part: slice) -> Array:
        each = 4 * self.o * self.h * self.w
        return winners[each * part.start : each * part.stop].reshape(4, self.o, -1)

    def taps(self) -> list[tuple[tuple[int, int, int, int], tuple[int, int, slice, slice]]]:
        """Kernel and window pixel (i, j, p, q), and the part of the image's phases they read."""
        h, w = self.h, self.w
        return [
            ((i, j, p, q), ((p + i) % 2, (q + j) % 2, slice(r, r + h), slice(s, s + w)))
            for i in range(self.kh)
            for j in range(self.kw)
            for p in range(2)
            for q in range(2)
            for r, s in [((p + i) // 2, (q + j) // 2)]
        ]

    def image(self, n: int) -> Array:
        return self.scratch("image", (self.c, 2, 2, self.h + self.kh // 2, self.w + self.kw // 2, n))

    def places(self, image: Array, x: Array) -> list[tuple[Array, Array]]:
        """Pairs of a phase's interior in ``image`` and the pixels of ``x`` (C, H, W, n) that belong there."""
        pairs = []
        for p in range(2):
            for q in range(2):
                row, column = (p + self.padding) % 2, (q + self.padding) % 2
                top, left = (row + self.padding) // 2, (column + self.padding) // 2
                inside = image[:, p, q, top:, left:]
                pixels = x[:, row::2, column::2][:, : inside.shape[1], : inside.shape[2]]
                pairs.append((inside[:, : pixels.shape[1], : pixels.shape[2]], pixels))
        return pairs

    def columns(self, x: Array, *, with_ones: bool) -> Array:
        """Patches of a block (n, C, H, W) as (C * kh * kw, 4 * h * w * n), phase by phase; ones for the bias below."""
        n = x.shape[0]
        image = self.image(n)
        if self.padding:
            image[...] = 0
        for inside, pixels in self.places(image, x.transpose(1, 2, 3, 0)):
            inside[...] = pixels
        columns = self.scratch("columns", (self.rows + with_ones, 4 * self.h * self.w * n))
        patches = columns[: self.rows].reshape(self.c, self.kh, self.kw, 2, 2, self.h, self.w, n)
        for (i, j, p, q), where in self.taps():
            patches[:, i, j, p, q] = image[:, *where]
        if with_ones:
            columns[-1] = 1
        return columns

    def add_back(self, columns: Array, grad_x: Array) -> None:
        """The adjoint of `columns`: every entry added to the pixel of ``grad_x`` that it was copied from."""
        image = self.image(grad_x.shape[0])
        image[...] = 0
        patches = columns.reshape(self.c, self.kh, self.kw, 2, 2, self.h, self.w, -1)
        for (i, j, p, q), where in self.taps():
            image[:, *where] += patches[:, i, j, p, q]
        pixels = grad_x.transpose(1, 2, 3, 0)
        if pixels.shape[1] > 2 * self.h + self.kh - 1 - self.padding or (
            pixels.shape[2] > 2 * self.w + self.kw - 1 - self.padding
        ):
            grad_x[...] = 0  # a last row or column that no window covers
        for inside, place in self.places(image, pixels):
            place[...] = inside

    def route(self, gradient: Array, winners: Array) -> Array:
        """The gradient of each window (O, h * w * n) at the pixel that won, zero at the others: (O, 4 * h * w * n).

        By bits, as a product with 0 would turn an infinite gradient into NaN.
        """
        right_of_upper, right_of_lower, is_lower, stopped = winners
        bits = np.dtype(f"i{gradient.itemsize}")
        phases = self.scratch("product", (self.o, 4, gradient.shape[1]))
        mask = self.scratch("mask", gradient.shape).view(bits)
        lower = self.scratch("lower", gradient.shape).view(bits)
        upper, out = gradient.view(bits), phases.view(bits)

        def split(both: Array, second_won: Array, first: Array, second: Array) -> None:
            np.negative(second_won.view(np.int8), out=mask, dtype=bits)
            np.bitwise_and(both, mask, out=second)
            np.bitwise_xor(both, second, out=first)

        np.subtract(stopped.view(np.int8), 1, out=mask, dtype=bits)  # all bits where it passes, none where not
        np.bitwise_and(upper, mask, out=upper)
        split(upper, is_lower, upper, lower)
        split(upper, right_of_upper, out[:, 0], out[:, 1])
        split(lower, right_of_lower, out[:, 2], out[:, 3])
        return phases.reshape(self.o, -1)
