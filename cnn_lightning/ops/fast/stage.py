"""One convolution, ReLU and 2x2 max-pooling on a block of images that stays in cache: a stage of `fused`.

Three facts make it short. A maximum commutes with ReLU, so that ReLU is computed on the pooled quarter of the pixels.
With the images last in memory, ``(C, H, W, n)``, an operation on a pixel is one on a contiguous run of n values. And if
the outputs of a convolution are sorted by their place in the pooling window (four *phases*, each a contiguous array),
pooling is maxima of whole arrays, without strided access.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import prod

import numpy as np

from cnn_lightning.ops.fast import blocks, matmul, tuning
from cnn_lightning.ops.types import Array


class Stage:
    """The mathematics: forward and backward for a block of images (C, H, W, n)."""

    def __init__(self, shape: Sequence[int], weight: Array, bias: Array | None, padding: int) -> None:
        self.shape, self.weight, self.bias, self.padding = tuple(shape), weight, bias, padding
        self.c, height, width = shape
        self.o, _, self.kh, self.kw = weight.shape
        self.h, self.w = (height + 2 * padding - self.kh + 1) // 2, (width + 2 * padding - self.kw + 1) // 2
        self.pooled = self.o, self.h, self.w
        self.pixels = self.o * self.h * self.w
        self.rows = self.c * self.kh * self.kw
        self.bytes = 4 * (self.rows + self.o) * self.h * self.w * weight.itemsize

    @cached_property
    def matrix(self) -> Array:
        """Kernels and bias as (O, (C * kh * kw) + 1)."""
        bias = np.zeros_like(self.weight, shape=(self.o,)) if self.bias is None else self.bias
        return np.concatenate([self.weight.reshape(self.o, -1), bias[:, None]], axis=1)

    def memory(self, n: int) -> "StageMemory":
        """This thread's memory for a block of ``n`` images."""
        key = (StageMemory, *self.shape, *self.weight.shape, self.padding, n, self.weight.dtype)
        return blocks.kept(key, lambda: StageMemory(self, n))

    def forward(self, image: Array, pooled: Array, winners: Array | None) -> None:
        """Fill ``pooled`` (O, h, w, n) and ``winners`` (4, O, h, w, n) from ``image`` (C, H, W, n)."""
        memory = self.memory(image.shape[-1])
        memory.fill(image)
        np.matmul(self.matrix, memory.pieces.make(), out=memory.pieces.of(memory.product))
        y = pooled.reshape(memory.upper.shape)
        if winners is not None:
            is_right, is_lower, passes = _comparisons(winners)
            np.greater(memory.right, memory.left, out=is_right)
        np.maximum(memory.left, memory.right, out=memory.left)
        np.maximum(memory.upper, memory.lower, out=y)
        if winners is not None:
            np.greater(memory.lower, memory.upper, out=is_lower)
            np.greater(y, 0, out=passes)
            if blocks.may_hold_nan(y):
                is_right |= np.isnan(memory.right)
                is_lower |= np.isnan(memory.lower)
                passes |= np.isnan(y)
        np.maximum(y, 0, out=y)

    def route(self, gradient: Array, winners: Array) -> Array:
        """The gradient of each window (O, h, w, n) at the pixel that won, zero at the others: (O, 4 * h * w * n).

        Computed as integers, since an infinite gradient times 0 would be NaN. Overwrites ``gradient``.
        """
        memory = self.memory(gradient.shape[-1])
        is_right, is_lower, passes = (flags.view(np.int8) for flags in _comparisons(winners))
        bits = memory.left_bits.dtype
        both = gradient.reshape(passes.shape).view(bits)
        np.multiply(both, passes, out=both, dtype=bits)
        np.multiply(both, is_lower, out=memory.lower_bits, dtype=bits)
        np.bitwise_xor(both, memory.lower_bits, out=memory.upper_bits)
        np.multiply(memory.left_bits, is_right, out=memory.right_bits, dtype=bits)
        np.bitwise_xor(memory.left_bits, memory.right_bits, out=memory.left_bits)
        return memory.product

    def grad_weight(self, image: Array, upstream: Array) -> Array:
        """The summand of a block in the gradient of `matrix`, transposed, from (O, 4 * h * w * n)."""
        memory = self.memory(image.shape[-1])
        memory.fill(image)
        return matmul.times_transposed(memory.whole.make()[0], upstream)

    def grad_image(self, upstream: Array) -> Array:
        """The adjoint of the convolution: the gradient of each output, times the kernel, added to its patch.

        From (O, 4 * h * w * n) to a block of images (C, H, W, n).
        """
        memory = self.memory(upstream.shape[1] // (4 * self.h * self.w))
        pieces = memory.pieces
        np.matmul(self.weight.reshape(self.o, -1).T, pieces.of(upstream), out=pieces.stack[:, :-1])
        pieces.unmake()
        return memory.empty()

    def gradients(self, sums: Sequence[Array | None]) -> list[Array | None]:
        """Gradients of kernel and bias from the summands of the blocks, of `grad_weight` or of the bias alone."""
        total = np.zeros_like(self.weight, shape=(self.rows + 1, self.o))
        for part in sums:
            if part is not None:
                total[-len(part) :] += part
        return [np.ascontiguousarray(total[:-1].T, like=total).reshape(self.weight.shape), total[-1].copy()]


class StageMemory:
    """A thread's memory for blocks of ``n`` images in a stage, and all views of it that the stage uses.

    It is made once, because the views take longer to make than many of the steps on them.

    The padded image is stored in kw + 1 planes; plane u has every second column from u on. Then kernel pixel (i, j)
    reads for window pixel (p, q) plane q + j from row p + i on: one view has all patches.
    """

    def __init__(self, stage: Stage, n: int) -> None:
        like = stage.weight
        self.pooled = blocks.scratch("fused pooled", (*stage.pooled, n), like=like)
        self.image = blocks.scratch("fused image", (*stage.shape, n), like=like)

        planes = stage.c, 2 * stage.h + stage.kh - 1, stage.kw + 1, stage.w, n
        self.planes = blocks.scratch("fused planes", planes, like=like)
        inside = list(_inside(stage))
        self.pixels = [(self.planes[:, rows, u, places], pixels) for u, (rows, places, *pixels) in enumerate(inside)]
        self.padding = [self.planes[place] for place in _outside(stage, inside)]

        columns = blocks.scratch("fused columns", (stage.rows + 1, 4 * stage.h * stage.w * n), like=like)
        parts = _parts_of_a_row(stage.w * n, len(columns) * stage.o)
        self.whole = _Columns(self.planes, columns, stage, (1, 1, 1, 1))
        self.pieces = _Columns(self.planes, columns, stage, (2, 2, stage.h, parts)) if parts else self.whole

        self.product = blocks.scratch("fused phases", (stage.o, columns.shape[1]), like=like)
        self.left, self.right, self.upper, self.lower = _phases(self.product)
        bits = self.product.view(np.dtype(f"i{like.itemsize}"))
        self.left_bits, self.right_bits, self.upper_bits, self.lower_bits = _phases(bits)

    def fill(self, image: Array) -> None:
        """Store an image (C, H, W, n) in the planes."""
        for place in self.padding:
            place[...] = 0
        for place, pixels in self.pixels:
            place[...] = image[:, *pixels]

    def empty(self) -> Array:
        """The adjoint of `fill`: for each pixel the sum of its values in the planes."""
        self.image[...] = 0
        for place, pixels in self.pixels:
            self.image[:, *pixels] += place
        return self.image


class _Columns:
    """All patches of the planes as columns, ``stack`` (pieces, (C * kh * kw) + 1, columns of a piece).

    They are ordered by column and row of the phase, then by the row in a phase, then by the column and the image.
    ``cut`` is the number of pieces for each of the four.
    """

    def __init__(self, planes: Array, columns: Array, stage: Stage, cut: tuple[int, ...]) -> None:
        n = planes.shape[-1]
        inner = [size // parts for size, parts in zip((2, 2, stage.h, stage.w * n), cut, strict=True)]
        self.planes = planes
        self.stack = columns.reshape(prod(cut), len(columns), prod(inner))
        self.patches = self.stack[:, :-1].reshape(*cut, stage.c, stage.kh, stage.kw, *inner)
        # With whole rows [c, i, j, q, p, h, w] is planes[c, i + p + 2h, j + q, w]; w counts columns times images.
        of_channel, of_row, of_plane, _, of_image = planes.strides
        steps = of_plane, of_row, 2 * of_row, of_image
        outer = (step * size for step, size in zip(steps, inner, strict=True))
        self.steps = *outer, of_channel, of_row, of_plane, *steps
        # The planes [c, 2h + p, q, w], with each of the four axes cut, in the order of the patches.
        q, p, h, w = zip(cut, inner, strict=True)
        order = 5, 3, 1, 7, 0, 6, 4, 2, 8
        self.taps = [
            (
                planes[:, i : i + 2 * stage.h, j : j + 2].reshape(stage.c, *h, *p, *q, *w).transpose(order),
                self.patches[:, :, :, :, :, i, j],
            )
            for i in range(stage.kh)
            for j in range(stage.kw)
        ]
        self.not_in_first = planes[:, 2 * stage.h :], planes[:, : 2 * stage.h, 2:]

    def of(self, product: Array) -> Array:
        """The columns (O, 4 * h * w * n) of a product, cut into the same pieces."""
        pieces, _, length = self.stack.shape
        return product.reshape(len(product), pieces, length).transpose(1, 0, 2)

    def make(self) -> Array:
        """The columns, and ones for the bias in the last row."""
        blocks.copy_windows(self.patches, self.planes, self.steps)
        self.stack[:, -1] = 1
        return self.stack

    def unmake(self) -> None:
        """The adjoint of `make`: each entry of a column added to its place in the planes."""
        for place in self.not_in_first:
            place[...] = 0
        (first, patches), *others = self.taps
        first[...] = patches
        for place, patches in others:
            place += patches


def _parts_of_a_row(length: int, entries: int) -> int:
    """The fastest number of pieces for one row of a phase; 0 if the whole product is fastest."""
    numbers = tuning.TUNING
    shortest = numbers.chain_piece_shortest
    longest = min(numbers.chain_piece_longest, numbers.product_multiplications // entries)
    counts = range(1, numbers.chain_pieces + 1)
    fitting = (parts for parts in counts if length % parts == 0 and shortest <= length // parts <= longest)
    return next(fitting, 0)


def _inside(stage: Stage) -> Iterator[tuple[slice, slice, slice, slice]]:
    """For each plane its rows and columns without padding, and the pixels of an image that they have."""
    _, height, width = stage.shape
    padding = stage.padding
    rows = slice(padding, min(height + padding, 2 * stage.h + stage.kh - 1))
    for u in range(stage.kw + 1):
        first = max(0, (padding - u + 1) // 2)
        start = u + 2 * first - padding
        count = max(0, min(-(-(width - start) // 2), stage.w - first))
        of_image = slice(0, rows.stop - rows.start), slice(start, start + 2 * count, 2)
        yield rows, slice(first, first + count), *of_image


def _outside(stage: Stage, inside: Sequence[tuple[slice, ...]]) -> Iterator[tuple[slice | int, ...]]:
    """The rows, planes and columns of padding."""
    rows, every = inside[0][0], slice(None)
    for outside in _rest(rows, 2 * stage.h + stage.kh - 1):
        yield every, outside
    for plane, (_, columns, *_) in enumerate(inside):
        for outside in _rest(columns, stage.w):
            yield every, rows, plane, outside


def _rest(inside: slice, length: int) -> list[slice]:
    """The slices of ``length`` before and after a slice, without empty ones."""
    found = slice(0, inside.start), slice(inside.stop, length)
    return [part for part in found if part.start < part.stop]


def _phases(product: Array) -> tuple[Array, Array, Array, Array]:
    """(O, 4 * h * w * n) as left and right, each (O, 2, h * w * n), and the upper and the lower of the left ones."""
    phases = product.reshape(len(product), 2, 2, product.shape[1] // 4)
    left, right = phases[:, 0], phases[:, 1]
    return left, right, left[:, 0], left[:, 1]


def _comparisons(winners: Array) -> tuple[Array, Array, Array]:
    """Winners (4, O, h, w, n) as: did the right one win (O, 2, h * w * n), did a lower one, is the result positive."""
    flags = winners.reshape(4, winners.shape[1], -1)
    return flags[:2].transpose(1, 0, 2), flags[2], flags[3]
