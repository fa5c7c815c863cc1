"""A chain of convolution, ReLU and 2x2 max-pooling, a block of images at a time, while the block is still in cache.

Layer by layer, each step writes a whole batch to memory and reads it back, forward and backward. Here a block of
images goes through all stages at once. What the backward keeps of a stage is its pooled output and four comparisons
for each of its pixels.

Three facts make it short. A maximum commutes with ReLU, so that ReLU works on the pooled quarter. With the images
last in memory, ``(C, H, W, n)``, whatever happens to a pixel happens to a contiguous run of them. And with the
outputs of a convolution sorted by their place in the pooling window (four *phases*, each a contiguous array), pooling
is maxima of whole arrays, with no strided access at all.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import prod

import numpy as np

from cnn_lightning.ops import _blocks, _matmul
from cnn_lightning.ops._types import Array


def conv_relu_pool(
    x: Array, *parameters: Array | None, paddings: Sequence[int], keep: bool = True
) -> tuple[Array, ...] | Array:
    """``x = max_pool2d(relu(conv2d(x, weight, bias, padding=padding)), 2)`` for each stage in turn.

    Args:
        x: Images (N, C, H, W).
        parameters: For each stage its kernels (O, C, kh, kw) and its bias, (O,) or None.
        paddings: For each stage the zeros around its images.
        keep: Whether a backward will follow; otherwise only y is returned.

    Returns:
        ``(y, *winners, *images)``: the last stage's output (N, O, h, w) with ``h = (H + 2*padding - kh + 1) // 2``, and
        what the backward needs, flat and block by block: the winners of each stage, and its input but for the first.
        Winners are four comparisons for each pooled pixel: is the right pixel the larger in the upper and in the lower
        pair, is the lower pair, and does ReLU pass it. Ties go to the first, and NaN wins, as in `max_pool2d`.
    """
    stages = _stages(x, parameters, paddings)
    y = _blocks.empty((len(x), *stages[-1].pooled), like=x)
    kept = stages if keep else []
    winners = [_blocks.empty((len(x) * 4 * stage.pixels,), like=x, dtype=bool) for stage in kept]
    images = [_blocks.empty((len(x) * stage.pixels,), like=x) for stage in kept[:-1]]

    def block(part: slice) -> None:
        image = x[part].transpose(1, 2, 3, 0)
        for index, stage in enumerate(stages):
            if index < len(images):
                pooled = _part(images[index], part, *stage.pooled)
            else:
                pooled = stage.scratch("pooled", (*stage.pooled, part.stop - part.start))
            stage.forward(image, pooled, _part(winners[index], part, 4, *stage.pooled) if keep else None)
            image = pooled
        y[part] = image.transpose(3, 0, 1, 2)

    _blocks.run(block, _parts(len(x), stages), like=x)
    return (y, *winners, *images) if keep else y


def conv_relu_pool_backward(
    grad_y: Array, x: Array, *saved: Array | None, paddings: Sequence[int], needs: Sequence[bool]
) -> tuple[Array | None, ...]:
    """Gradients of `conv_relu_pool` with respect to x and, for each stage, its kernels and its bias.

    Back through the stages: the upstream gradient passes where ReLU passed and goes to the one pixel of each window
    that won; then ``grad_weight = G X^T``, and ``grad_x`` from ``W^T G``, as in `conv2d_backward`.

    Args:
        grad_y: (N, O, h, w).
        x: Images (N, C, H, W).
        saved: The parameters of `conv_relu_pool`, then the winners and images it returned.
        paddings: As there.
        needs: Whether x, and each of the parameters, needs its gradient.
    """
    count = len(paddings)
    stages = _stages(x, saved[: 2 * count], paddings)
    winners, images = _arrays(saved[2 * count : 3 * count]), _arrays(saved[3 * count :])
    needs_x, needs_weight, needs_bias = needs[0], needs[1::2], needs[2::2]
    grad_x = _blocks.empty(x.shape, like=x) if needs_x else None
    lowest = 0 if needs_x else (list(needs).index(True) - 1) // 2  # below it nothing needs a gradient

    def block(part: slice) -> list[Array | None]:
        n = part.stop - part.start
        gradient = stages[-1].scratch("pooled", (*stages[-1].pooled, n))
        gradient[...] = grad_y[part].transpose(1, 2, 3, 0)
        sums: list[Array | None] = [None] * count
        for index in range(count - 1, lowest - 1, -1):
            stage = stages[index]
            upstream = stage.route(gradient, _part(winners[index], part, 4, *stage.pooled))
            if needs_weight[index]:
                image = _part(images[index - 1], part, *stage.shape) if index else x[part].transpose(1, 2, 3, 0)
                sums[index] = _matmul.times_transposed(stage.columns(image), upstream)
            elif needs_bias[index]:
                sums[index] = upstream.sum(1)[None]
            if index > lowest or needs_x:
                gradient = stage.spread(upstream)
        if grad_x is not None:
            grad_x[part] = gradient.transpose(3, 0, 1, 2)
        return sums

    gradients = [grad_x]
    for stage, *parts in zip(stages, *_blocks.run(block, _parts(len(x), stages), like=x), strict=True):
        gradients += stage.gradients(parts)
    return tuple(gradient if need else None for gradient, need in zip(gradients, needs, strict=True))


def _stages(x: Array, parameters: Sequence[Array | None], paddings: Sequence[int]) -> list["_Stage"]:
    shape, stages = x.shape[1:], []
    for weight, bias, padding in zip(parameters[::2], parameters[1::2], paddings, strict=True):
        assert weight is not None
        stages.append(_Stage(shape, weight, bias, padding))
        shape = stages[-1].pooled
    return stages


_IMAGES = 32
"""In a block, at most: the runs that NumPy works on are as long as a block has images times the width of one, and a
block should stay in cache. Measured with SimpleCNN on 28x28 and 32x32 images, 8, 16, 32 and 64 in a block, forward and
backward, one thread: 10.4, 9.4, 9.3, 9.2 ms and 54.9, 51.6, 51.0, 55.3 ms; two threads: 12.3, 8.1, 6.7 and 36.5, 31.8,
28.2 ms."""
_BLOCK_BYTES = 16 * 2**20
_WORTH_TWO_THREADS = 2 * 2**20
"""Columns and phases of a batch; with fewer, waking another thread costs what it saves."""


def _parts(n: int, stages: Sequence["_Stage"]) -> list[slice]:
    """One block, or an even number of them, so that two threads have as much to do."""
    image = max(1, *(stage.bytes for stage in stages))
    blocks = -(-n // max(1, min(_IMAGES, _BLOCK_BYTES // image)))
    if n * image >= _WORTH_TWO_THREADS:
        blocks += blocks % 2
    size = max(1, -(-n // max(1, blocks)))
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _part(flat: Array, part: slice, *shape: int) -> Array:
    """A block of what is kept block by block, its images last."""
    each = prod(shape)
    return flat[each * part.start : each * part.stop].reshape(*shape, -1)


def _arrays(saved: Sequence[Array | None]) -> list[Array]:
    return [array for array in saved if array is not None]


class _Stage:
    """One convolution, ReLU and pooling on blocks of images (C, H, W, n)."""

    def __init__(self, shape: Sequence[int], weight: Array, bias: Array | None, padding: int) -> None:
        self.shape, self.weight, self.bias, self.padding = tuple(shape), weight, bias, padding
        self.c, height, width = shape
        self.o, _, self.kh, self.kw = weight.shape
        self.h, self.w = (height + 2 * padding - self.kh + 1) // 2, (width + 2 * padding - self.kw + 1) // 2
        self.pooled = self.o, self.h, self.w
        self.pixels = self.o * self.h * self.w
        self.rows = self.c * self.kh * self.kw
        self.places = list(self._places(height, width))
        self.edges = list(self._edges())
        self.bytes = 4 * (self.rows + self.o) * self.h * self.w * weight.itemsize

    @cached_property
    def matrix(self) -> Array:
        """Kernels and bias as (O, (C * kh * kw) + 1)."""
        bias = np.zeros_like(self.weight, shape=(self.o,)) if self.bias is None else self.bias
        return np.concatenate([self.weight.reshape(self.o, -1), bias[:, None]], axis=1)

    def _places(self, height: int, width: int) -> Iterator[tuple[slice, slice, slice, slice]]:
        """For each plane its rows and columns that aren't padding, and the pixels of an image that are there."""
        rows = slice(self.padding, min(height + self.padding, 2 * self.h + self.kh - 1))
        for u in range(self.kw + 1):
            first = max(0, (self.padding - u + 1) // 2)
            start = u + 2 * first - self.padding
            count = max(0, min(-(-(width - start) // 2), self.w - first))
            of_image = slice(0, rows.stop - rows.start), slice(start, start + 2 * count, 2)
            yield rows, slice(first, first + count), *of_image

    def _edges(self) -> Iterator[tuple[slice, slice | int, slice]]:
        """The rows, planes and columns that hold padding."""
        rows, every = self.places[0][0], slice(None)
        for outside in _outside(rows, 2 * self.h + self.kh - 1):
            yield outside, every, every
        for plane, (_, columns, *_) in enumerate(self.places):
            for outside in _outside(columns, self.w):
                yield rows, plane, outside

    def scratch(self, name: str, shape: Sequence[int]) -> Array:
        return _blocks.scratch(name, shape, like=self.weight)

    def forward(self, image: Array, pooled: Array, winners: Array | None) -> None:
        """Fill ``pooled`` (O, h, w, n) and ``winners`` (4, O, h, w, n) from ``image`` (C, H, W, n)."""
        columns = self.columns(image)
        phases = self.scratch("phases", (self.o, 2, 2, columns.shape[1] // 4))
        _matmul.times(self.matrix, columns, phases.reshape(self.o, -1))
        left, right = phases[:, 0], phases[:, 1]  # each (O, 2, h * w * n): the upper and the lower pair
        upper, lower = left[:, 0], left[:, 1]
        y = pooled.reshape(upper.shape)
        if winners is not None:
            is_right, is_lower, passes = _comparisons(winners)
            np.greater(right, left, out=is_right)
        np.maximum(left, right, out=left)
        np.maximum(upper, lower, out=y)
        if winners is not None:
            np.greater(lower, upper, out=is_lower)
            np.greater(y, 0, out=passes)
            if _blocks.may_hold_nan(y):
                is_right |= np.isnan(right)
                is_lower |= np.isnan(lower)
                passes |= np.isnan(y)
        np.maximum(y, 0, out=y)

    def route(self, gradient: Array, winners: Array) -> Array:
        """The gradient of each window (O, h, w, n) at the pixel that won, zero at the others: (O, 4 * h * w * n).

        By integers, as an infinite gradient times 0 would be NaN.
        """
        is_right, is_lower, passes = (flags.view(np.int8) for flags in _comparisons(winners))
        phases = self.scratch("phases", (self.o, 2, 2, passes.shape[-1]))
        bits = np.dtype(f"i{gradient.itemsize}")
        both, out = gradient.reshape(passes.shape).view(bits), phases.view(bits)
        left, right = out[:, 0], out[:, 1]
        np.multiply(both, passes, out=both, dtype=bits)
        np.multiply(both, is_lower, out=left[:, 1], dtype=bits)
        np.bitwise_xor(both, left[:, 1], out=left[:, 0])
        np.multiply(left, is_right, out=right, dtype=bits)
        np.bitwise_xor(left, right, out=left)
        return phases.reshape(self.o, -1)

    def columns(self, image: Array) -> Array:
        """Patches of a block as ((C * kh * kw) + 1, 4 * h * w * n), phase by phase; ones for the bias in the last row.

        The padded image is laid out in kw + 1 planes, plane u holding every second column from u on. What kernel pixel
        (i, j) reads for window pixel (p, q) is then plane q + j from row p + i on: one view with all patches in it.
        """
        n = image.shape[-1]
        planes = self.planes(n)
        for rows, plane, places in self.edges:
            planes[:, rows, plane, places] = 0
        for plane, (rows, places, *pixels) in enumerate(self.places):
            planes[:, rows, plane, places] = image[:, *pixels]
        matrix = self.scratch("columns", (self.rows + 1, 4 * self.h * self.w * n))
        patches = matrix[:-1].reshape(self.c, self.kh, self.kw, 2, 2, self.h, self.w, n)
        of_plane, of_row = planes.strides[2], planes.strides[1]
        # [c, i, j, q, p, h, w, n] is planes[c, i + p + 2h, j + q, w, n]
        of_channel, *_, of_column, of_image = planes.strides
        _blocks.copy_windows(
            patches, planes, (of_channel, of_row, of_plane, of_plane, of_row, 2 * of_row, of_column, of_image)
        )
        matrix[-1] = 1
        return matrix

    def spread(self, upstream: Array) -> Array:
        """The adjoint of the convolution: each output's gradient, times the kernel, added to what it was computed from.

        From (O, 4 * h * w * n) to a block of images (C, H, W, n).
        """
        n = upstream.shape[1] // (4 * self.h * self.w)
        columns = self.scratch("columns", (self.rows, upstream.shape[1]))
        _matmul.times(self.weight.reshape(self.o, -1).T, upstream, columns)
        patches = columns.reshape(self.c, self.kh, self.kw, 2, 2, self.h, self.w, n)
        planes = self.planes(n)
        planes[:, 2 * self.h :] = 0
        planes[:, : 2 * self.h, 2:] = 0  # the rest is what the first kernel pixel reads
        for i in range(self.kh):
            rows = planes[:, i : i + 2 * self.h].reshape(self.c, self.h, 2, self.kw + 1, self.w, n)
            for j in range(self.kw):
                taps = patches[:, i, j].transpose(0, 3, 2, 1, 4, 5)
                if i == j == 0:
                    rows[:, :, :, :2] = taps
                else:
                    rows[:, :, :, j : j + 2] += taps
        image = self.scratch("pooled", (*self.shape, n))
        image[...] = 0
        for plane, (inside, places, *pixels) in enumerate(self.places):
            image[:, *pixels] += planes[:, inside, plane, places]
        return image

    def planes(self, n: int) -> Array:
        return self.scratch("planes", (self.c, 2 * self.h + self.kh - 1, self.kw + 1, self.w, n))

    def gradients(self, sums: Sequence[Array | None]) -> list[Array | None]:
        """Kernel's and bias's gradient from what each block contributed: rows as in `columns`, or the bias's alone."""
        total = np.zeros_like(self.weight, shape=(self.rows + 1, self.o))
        for part in sums:
            if part is not None:
                total[-len(part) :] += part
        return [np.ascontiguousarray(total[:-1].T, like=total).reshape(self.weight.shape), total[-1].copy()]


def _outside(inside: slice, length: int) -> list[slice]:
    """What is left of ``length`` before and after a slice, where there is any."""
    found = slice(0, inside.start), slice(inside.stop, length)
    return [part for part in found if part.start < part.stop]


def _comparisons(winners: Array) -> tuple[Array, Array, Array]:
    """Winners (4, O, h, w, n) as: is it the right one (O, 2, h * w * n), is it a lower one, does it pass."""
    flags = winners.reshape(4, winners.shape[1], -1)
    return flags[:2].transpose(1, 0, 2), flags[2], flags[3]
