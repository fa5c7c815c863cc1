"""The channels of a batch in memory, and sums over each of them that are fast and lose no digits.

A batch has one of two forms, neither of which is a copy:

* `Runs`, (c, r, L): the values of a channel are r runs of L adjacent values. Batch-last memory has a single run for
  each channel, so that the form is (c, L).
* `Rows`, (r, side, c, L): tiny images, and channels_last memory with L = 1. Sums go over r first, which adds whole
  rows of memory. A row has ``side`` samples or pixels, as many as NumPy needs to be fast; the axis is left out if one
  is enough.

NumPy adds float32 in float32 inside a piece, which is short enough to be exact to a rounding or two, and the pieces in
float64. No sum depends on the number of threads.

A form follows from shape and strides alone, and is made once for all calls: most batches in a network are so small that
every question and every call into NumPy counts.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from cnn_lightning.ops.fast import blocks, tuning
from cnn_lightning.ops.fast.memory import images, is_batch_last, pixels
from cnn_lightning.ops.types import Array


class _Form:
    """The form of a batch (N, C, ...).

    Attributes:
        count: The values of a channel, at least 1.
    """

    def __init__(self, x: Array) -> None:
        self.numbers = tuning.TUNING
        self.dtype, self.c, self.count = x.dtype, x.shape[1], max(1, x.size // max(1, x.shape[1]))
        self.parallel = x.nbytes >= self.numbers.norm_threads_bytes
        self.together = 1
        self.parts: dict[int, list[slice]] = {}
        self.shape: tuple[int, ...] = ()
        axes = (*range(x.ndim),)
        self.axes, self.back = axes, axes
        if is_batch_last(x):
            self.axes, self.back = (*axes[1:], 0), (axes[-1], *axes[:-1])
        elif is_channels_last(x):
            self.axes, self.back = (0, *axes[2:], 1), (0, axes[-1], *axes[1:-1])
        self.memory = tuple(x.shape[axis] for axis in self.axes)
        self.is_turned = self.axes != axes

    def of(self, a: Array) -> Array:
        """``a``, of the shape of the batch, in this form; a copy if its order in memory is another one."""
        return a.transpose(self.axes).reshape(self.shape)

    def empty(self, like: Array) -> Array:
        """A new array for the batch, in its order in memory."""
        new = blocks.empty(self.memory, like=like)
        return new.transpose(self.back) if self.is_turned else new

    def run(self, block: Callable[[slice], None], arrays: int) -> None:
        """``block`` for every block of channels, in which so many arrays like the batch are in use."""
        parts = self.parts.get(arrays)
        if parts is None:
            parts = self.parts[arrays] = self._parts(arrays * self.dtype.itemsize)
        blocks.run(block, parts, parallel=self.parallel)

    def _parts(self, value_bytes: int) -> list[slice]:
        parts = blocks.blocks(-(-self.c // self.together), self.together * self.count * value_bytes)
        return [slice(part.start * self.together, min(self.c, part.stop * self.together)) for part in parts]


class Runs(_Form):
    """(c, r, L), or (c, L) if each channel is a single run."""

    def __init__(self, x: Array) -> None:
        super().__init__(x)
        n, length = x.shape[0], prod(x.shape[2:])
        if self.is_turned or n == 1:
            self.shape = (self.c, n * length)
        else:
            self.shape, self.axes = (self.c, n, length), (1, 0, *self.axes[2:])
        self.column = (slice(None), *(None,) * (len(self.shape) - 1))
        self.length = self.shape[-1]
        is_short = length < self.numbers.norm_long_run and x.size >= self.numbers.norm_repeated
        self.repeats = len(self.shape) == 3 and is_short
        self.piece = _piece(self.length, self.numbers.norm_piece)
        self.whole = self.length - self.length % max(1, self.piece)
        self.is_cut = self.piece < self.length
        self.pieces = (*self.shape[1:-1], self.whole // max(1, self.piece), self.piece)
        self.sums = prod(self.pieces[:-1])
        self.ones, self.rest_ones = (_ones(x.dtype, count) for count in (self.piece, self.length - self.whole))
        self.ones_of_sums = _ones(np.dtype(np.float64), self.sums)

    def at(self, part: slice) -> slice:
        """The index of a block of channels."""
        return part

    def across(self, values: Array) -> Array:
        """One value for each channel of a block, as an array that broadcasts to the block."""
        column: Array = values[self.column]
        return np.repeat(column, self.length, 2) if self.repeats else column

    def sum(self, a: Array) -> Array:
        """The sum of each channel of a block, in float64. BLAS adds each piece by itself."""
        if not self.is_cut:
            return self._add(np.vecdot(a, self.ones))
        total = self._add(np.vecdot(a[..., : self.whole].reshape(len(a), *self.pieces), self.ones))
        return total if self.whole == self.length else total + self._rest(a, self.rest_ones)

    def dot(self, a: Array, b: Array) -> Array:
        """The sum of products of each channel of a block, in float64."""
        if not self.is_cut:
            return self._add(np.vecdot(a, b))
        shape = (len(a), *self.pieces)
        total = self._add(np.vecdot(a[..., : self.whole].reshape(shape), b[..., : self.whole].reshape(shape)))
        return total if self.whole == self.length else total + self._rest(a, b[..., self.whole :])

    def _add(self, sums: Array) -> Array:
        """Sums of pieces, (c,) or (c, ...), to (c,): each channel by itself."""
        if sums.ndim == 1:
            return sums.astype(np.float64)
        result: Array = np.vecdot(sums.reshape(len(sums), self.sums), self.ones_of_sums)
        return result

    def _rest(self, a: Array, b: Array) -> Array:
        """What follows the last whole piece of each run."""
        sums = np.vecdot(a[..., self.whole :], b)
        return sums if sums.ndim == 1 else np.vecdot(sums, _ones(self.ones_of_sums.dtype, sums.shape[1]))


class Rows(_Form):
    """(r, c, L) or (r, side, c, L)."""

    def __init__(self, x: Array) -> None:
        super().__init__(x)
        rows, self.length = x.shape[0], prod(x.shape[2:])
        if self.is_turned:
            rows, self.length = rows * self.length, 1
        # Channels that are adjacent in memory stay in one block.
        self.together = -(-self.numbers.norm_neighbours // max(1, self.length))
        self.side, row = 1, self.c * self.length
        while rows % (2 * self.side) == 0 and 0 < self.side * row < self.numbers.norm_row <= rows * row:
            self.side *= 2
        self.rows = rows // self.side
        self.shape = (self.rows, *(self.side,) * (self.side > 1), self.c, self.length)
        self.piece = self.numbers.norm_rows
        self.ones = _ones(x.dtype, max(self.piece, self.length))

    def at(self, part: slice) -> tuple[Any, ...]:
        """The index of a block of channels."""
        return ..., part, slice(None)

    def across(self, values: Array) -> Array:
        """One value for each channel of a block, as an array that broadcasts to the block, whole rows of it."""
        row = np.repeat(values, self.length).reshape(len(values), self.length)
        return row if self.side == 1 else np.tile(row, (self.side, 1, 1))

    def sum(self, a: Array) -> Array:
        """The sum of each channel of a block, in float64. BLAS adds rows of memory, a few at a time."""
        c, whole = a.shape[-2], self.rows - self.rows % self.piece
        if self.rows <= self.piece and self.side == 1:
            columns = np.dot(self.ones[: self.rows], a.reshape(self.rows, c * self.length)).astype(np.float64)
        else:
            lines = a.reshape(self.rows, self.side, c * self.length).swapaxes(0, 1)
            first = lines[:, :whole].reshape(self.side, whole // self.piece, self.piece, c * self.length)
            columns = np.matmul(self.ones[: self.piece], first).sum((0, 1), dtype=np.float64)
            if whole < self.rows:
                rest = np.matmul(self.ones[: self.rows - whole], lines[:, whole:])
                columns += rest.sum(0, dtype=np.float64)
        if self.length == 1:
            return columns
        result: Array = np.dot(columns.reshape(c, self.length), self.ones[: self.length])
        return result

    def dot(self, a: Array, b: Array) -> Array:
        """The sum of products of each channel of a block, in float64."""
        product = blocks.scratch("channels product", a.shape, like=a)
        np.multiply(a, b, out=product)
        return self.sum(product)


_forms: dict[Any, Runs | Rows] = {}


def channels_of(x: Array) -> Runs | Rows:
    """The form of the batch ``x``."""
    key = x.shape, x.strides, x.dtype
    form = _forms.get(key)
    if form is None or form.numbers is not tuning.TUNING:
        if len(_forms) >= tuning.TUNING.kept_geometries:
            _forms.clear()
        form = _forms[key] = Runs(x) if _has_runs(x) else Rows(x)
    return form


def _has_runs(x: Array) -> bool:
    """Whether the runs of channels are long, or so few that their number does not count."""
    if is_batch_last(x):
        return True
    n, length, numbers = x.shape[0], prod(x.shape[2:]), tuning.TUNING
    is_long = length >= numbers.norm_run or (length > 1 and (n == 1 or n * x.shape[1] <= numbers.norm_few_runs))
    return is_long and not is_channels_last(x)


def _piece(length: int, longest: int) -> int:
    """How many values of a run are added in float32: if possible, so many that all pieces of the run are equal."""
    fewest = -(-length // longest)
    counts = range(max(1, fewest), 2 * fewest + 1)
    return next((length // count for count in counts if length % count == 0), min(length, longest))


def _ones(dtype: Any, count: int) -> Array:
    """``count`` ones."""
    ones = _ONES_32 if dtype == np.float32 else _ONES_64
    return ones[:count] if count <= len(ones) else np.ones(count, dtype)


_ONES_32, _ONES_64 = np.ones(4096, np.float32), np.ones(4096, np.float64)


def is_channels_last(x: Array) -> bool:
    """Whether channels are adjacent in memory and the array is contiguous otherwise; also for (N, C)."""
    if x.flags.c_contiguous and x.ndim > 2:
        return False
    return bool(x.transpose(0, *range(2, x.ndim), 1).flags.c_contiguous)


def samples(a: Array) -> Array:
    """(N, C, ...) as (N, C, L), without a copy also if channels or images are last in memory."""
    n, c, length = a.shape[0], a.shape[1], prod(a.shape[2:])
    if is_batch_last(a):
        return images(pixels(a).reshape(c, length, n))
    if length > 1 and is_channels_last(a):
        return a.transpose(0, *range(2, a.ndim), 1).reshape(n, length, c).swapaxes(1, 2)
    return a.reshape(n, c, length)


def output(x: Array) -> Array:
    """A new array like ``x`` of which `samples` makes a view."""
    return blocks.empty_like(x) if is_channels_last(x) or is_batch_last(x) else blocks.empty(x.shape, like=x)


def wide(name: str, x: Array) -> Array:
    """A copy in float64, in scratch memory."""
    values = blocks.scratch(name, x.shape, like=x, dtype=np.float64)
    values[...] = x
    return values
