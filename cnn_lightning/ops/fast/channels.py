"""The channels of a batch in memory, and sums over each of them that are fast and lose no digits.

A batch has one of two forms, neither of which is a copy:

* Long runs, (r, c, L): the values of a channel are r runs of L adjacent values. Batch-last memory has a single run for
  each channel.
* Short runs, (r, side, c, L): tiny images, and channels_last memory with L = 1. Sums go over r first, which adds whole
  rows of memory. A row has ``side`` samples or pixels, as many as NumPy needs to be fast; the axis is left out if one
  is enough.

NumPy adds float32 in float32 inside a piece, which is short enough to be exact to a rounding or two, and the pieces in
float64. No sum depends on the number of threads.
"""

from collections.abc import Callable
from math import prod

import numpy as np

from cnn_lightning.ops.fast import blocks, tuning
from cnn_lightning.ops.fast.memory import images, is_batch_last, pixels
from cnn_lightning.ops.types import Array


class Channels:
    """The form of a batch (N, C, ...).

    Attributes:
        count: The values of a channel, at least 1.
    """

    def __init__(self, x: Array) -> None:
        n, self.c, length = x.shape[0], x.shape[1], prod(x.shape[2:])
        self.count = max(1, n * length)
        self.nbytes = x.nbytes
        self.last, self.batch_last = is_channels_last(x), is_batch_last(x)
        if self.batch_last:
            rows, self.length = 1, n * length
        else:
            rows, self.length = (n * length, 1) if self.last else (n, length)
        numbers = tuning.TUNING
        self.long = self.batch_last or self.length >= numbers.norm_run
        # Channels that are adjacent in memory stay in one block.
        self.together = 1 if self.long else -(-numbers.norm_neighbours // max(1, self.length))
        if self.long:
            self.shape: tuple[int, ...] = (rows, self.c, self.length)
            return
        side, row = 1, self.c * self.length
        while rows % (2 * side) == 0 and 0 < side * row < numbers.norm_row <= rows * row:
            side *= 2
        self.shape = (rows, self.c, self.length) if side == 1 else (rows // side, side, self.c, self.length)

    def of(self, a: Array) -> Array:
        """``a``, of the shape of the batch, in this form; a copy if its order in memory is another one."""
        if self.batch_last:
            a = pixels(a)
        elif self.last:
            a = np.moveaxis(a, 1, -1)
        return a.reshape(self.shape)

    def run(self, block: Callable[[slice], None], value_bytes: int) -> None:
        """``block`` for every block of channels, with ``value_bytes`` of memory in use for each value."""
        numbers = tuning.TUNING
        parts = blocks.blocks(-(-self.c // self.together), self.together * self.count * value_bytes)
        if self.together > 1:
            parts = [slice(p.start * self.together, min(self.c, p.stop * self.together)) for p in parts]
        blocks.run(block, parts, parallel=self.nbytes >= numbers.norm_threads_bytes)

    def at(self, part: slice) -> tuple[slice, ...]:
        """The index of a block of channels."""
        return (slice(None), part) if len(self.shape) == 3 else (slice(None), slice(None), part)

    def across(self, values: Array, like: Array) -> Array:
        """One value for each channel of a block, in the dtype of ``like``, as an array that broadcasts to the block."""
        values = values[:, None]
        if self.long and (self.shape[0] == 1 or self.length >= tuning.TUNING.norm_long_run):
            return values.astype(like.dtype, copy=False)
        shape = (len(values), self.length)
        result = np.empty(shape if len(self.shape) == 3 else (self.shape[1], *shape), like.dtype)
        result[...] = values
        return result

    def sum(self, a: Array) -> Array:
        """The sum of each channel of a block, in float64."""
        return _sum_runs(a, None) if self.long else _sum_rows(a)

    def dot(self, a: Array, b: Array) -> Array:
        """The sum of products of each channel of a block, in float64."""
        if self.long:
            return _sum_runs(a, b)
        product = blocks.scratch("channels product", a.shape, like=a)
        np.multiply(a, b, out=product)
        return _sum_rows(product)


def is_channels_last(x: Array) -> bool:
    """Whether channels are adjacent in memory and the array is contiguous otherwise; also for (N, C)."""
    if x.flags.c_contiguous and x.ndim > 2:
        return False
    return bool(np.moveaxis(x, 1, -1).flags.c_contiguous)


def samples(a: Array) -> Array:
    """(N, C, ...) as (N, C, L), without a copy also if channels or images are last in memory."""
    n, c, length = a.shape[0], a.shape[1], prod(a.shape[2:])
    if is_batch_last(a):
        return images(pixels(a).reshape(c, length, n))
    if length > 1 and is_channels_last(a):
        return np.moveaxis(a, 1, -1).reshape(n, length, c).swapaxes(1, 2)
    return a.reshape(n, c, length)


def output(x: Array) -> Array:
    """A new array like ``x`` of which `Channels` of ``x``, and `samples`, make a view."""
    return blocks.empty_like(x) if is_channels_last(x) or is_batch_last(x) else blocks.empty(x.shape, like=x)


def wide(name: str, x: Array) -> Array:
    """A copy in float64, in scratch memory."""
    values = blocks.scratch(name, x.shape, like=x, dtype=np.float64)
    values[...] = x
    return values


# ---- sums, in float64


def _sum_runs(a: Array, b: Array | None) -> Array:
    """(r, c, L), and the same to multiply by, to (c,). Pieces of a run are computed by BLAS, each by itself."""
    runs, c, length = a.shape
    piece = tuning.TUNING.norm_piece
    if length <= piece:
        pieces = np.vecdot(a, _ones(a, length) if b is None else b)
        return pieces[0].astype(np.float64) if runs == 1 else _add_runs(pieces)
    whole = length - length % piece
    shape = (runs, c, whole // piece, piece)
    first = a[..., :whole].reshape(shape)
    pieces = np.vecdot(first, _ones(a, piece) if b is None else b[..., :whole].reshape(shape))
    if whole < length:
        rest = np.vecdot(a[..., whole:], _ones(a, length - whole) if b is None else b[..., whole:])
        pieces = np.concatenate([pieces, rest[..., None]], axis=-1)
    return _add_runs(pieces)


def _add_runs(pieces: Array) -> Array:
    """(r, c) or (r, c, pieces) to (c,), those of a channel side by side: else NumPy adds one channel differently."""
    c = pieces.shape[1]
    side_by_side = np.moveaxis(pieces, 1, 0).astype(np.float64, order="C").reshape(c, pieces.size // max(1, c))
    result: Array = np.add.reduce(side_by_side, axis=1)
    return result


def _sum_rows(a: Array) -> Array:
    """(r, c, L) or (r, side, c, L) to (c,). Rows of memory are added by BLAS, a few at a time."""
    rows, c, length = a.shape[0], a.shape[-2], a.shape[-1]
    piece = tuning.TUNING.norm_rows
    if rows <= piece and a.ndim == 3:
        columns = np.dot(_ones(a, rows), a.reshape(rows, c * length)).astype(np.float64)
    else:
        lines = a.reshape(rows, -1, c * length).swapaxes(0, 1)
        side, whole = len(lines), rows - rows % piece
        first = lines[:, :whole].reshape(side, whole // piece, piece, c * length)
        columns = np.matmul(_ones(a, piece), first).sum((0, 1), dtype=np.float64)
        if whole < rows:
            columns += np.matmul(_ones(a, rows - whole), lines[:, whole:]).sum(0, dtype=np.float64)
    return columns if length == 1 else np.dot(columns.reshape(c, length), _ones(columns, length))


def _ones(like: Array, count: int) -> Array:
    """``count`` ones."""
    ones = _ONES_32 if like.dtype == np.float32 else _ONES_64
    return ones[:count] if count <= len(ones) else np.ones(count, like.dtype)


_ONES_32, _ONES_64 = np.ones(4096, np.float32), np.ones(4096, np.float64)
