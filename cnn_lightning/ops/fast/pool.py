"""Pooling: the largest value or the mean of every window, and the gradients.

All memory formats are computed by the same code, on planes (P, H, W, K): (C, H, W, N) of batch-last images,
(N, H, W, C) of channels_last ones, (N C, H, W, 1) of contiguous ones. Windows are reduced along one axis after the
other.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.expect import Windows
from cnn_lightning.ops.fast import blocks, memory, tuning
from cnn_lightning.ops.fast.special import BITS, keep_where
from cnn_lightning.ops.types import Array, Pair


def max_pool2d(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Array:
    """`ops.pool.max_pool2d`."""
    g = expect.windows("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode)
    return _reduced(np.maximum, x, g, _lowest(x))


def max_pool2d_with_indices(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """`ops.pool.max_pool2d_with_indices`."""
    g = expect.windows("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode)
    y = _reduced(np.maximum, x, g, _lowest(x))
    taps = list(product(_taps(g, 0, x.shape[2]), _taps(g, 1, x.shape[3])))
    if len(taps) > _MOST_TAPS or blocks.may_hold_nan(y):
        return _compared_one_by_one(x, g, taps)
    order = _order(x)
    indices, winners = _output(x, g.size, order, np.int64)
    source, best = _planes(x, order), _planes(y, order)
    steps = g.stride[0] * x.shape[3], g.stride[1]
    first = (np.arange(g.size[0])[:, None] * steps[0] + np.arange(g.size[1]) * steps[1])[:, :, None]
    offsets = np.array([row.start(g.stride[0]) * x.shape[3] + column.start(g.stride[1]) for row, column in taps])

    def block(part: slice) -> None:
        numbers = np.full(best[part].shape, _MOST_TAPS, np.uint8)
        for number, (row, column) in enumerate(taps):
            windows, pixels = (slice(None), row.windows, column.windows), (row.pixels, column.pixels)
            other = (source[part][:, *pixels] != best[part][windows]).view(np.uint8)
            other *= _MOST_TAPS  # of the taps with the maximum, the first has the smallest number
            np.minimum(numbers[windows], np.maximum(other, number, out=other), out=numbers[windows])
        np.add(offsets[numbers], first, out=winners[part])

    _run(block, source)
    return y, indices


_MOST_TAPS = 255
"""Taps whose numbers are single bytes; one number is left for pixels that are not the maximum."""


def _compared_one_by_one(x: Array, g: Windows, taps: Sequence[tuple["_Tap", "_Tap"]]) -> tuple[Array, Array]:
    """`max_pool2d_with_indices` for NaN, whose last wins, and for large windows."""
    order = _order(x)
    (y, best), (indices, winners) = _output(x, g.size, order), _output(x, g.size, order, np.int64)
    source, places = _planes(x, order), np.arange(prod(x.shape[2:]), like=x).reshape(*x.shape[2:], 1)
    best[...], winners[...] = _lowest(x), -1

    def block(part: slice) -> None:
        for row, column in taps:
            windows, pixels = (slice(None), row.windows, column.windows), (row.pixels, column.pixels)
            value, before, winner = source[part][:, *pixels], best[part][windows], winners[part][windows]
            won = (value > before) | np.isnan(value) | (winner < 0)
            np.copyto(before, value, where=won)
            np.copyto(winner, places[pixels], where=won)

    _run(block, source)
    return y, indices


def max_pool2d_backward(
    grad_y: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Array:
    """`ops.pool.max_pool2d_backward`.

    The first of equal pixels, row by row, is the first one in its row, in the first such row. So each window is decided
    along its rows, and then between them.
    """
    g = expect.windows("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode)
    order = _order(x)
    source, upstream = _planes(x, order), _planes(grad_y, order)
    grad_x, target = _output(x, x.shape[2:], order)
    rows, columns = _taps(g, 0, x.shape[2]), _taps(g, 1, x.shape[3])

    def block(part: slice) -> None:
        phases = _phases(source[part], columns, g.stride[1])
        across = _scratch("across", phases[columns[0].phase], width=g.size[1])
        best = _scratch("best", across, height=g.size[0])
        _reduce(np.maximum, _by_columns(columns, phases), across, _lowest(x))
        _reduce(np.maximum, _by_rows(rows, across), best, _lowest(x))
        grad_phases = _gradient_phases(target[part], columns, g.stride[1])
        grad_across = _scratch("gradient across", across)
        for grad_best, nan in _decided(upstream[part], best):
            grad_across[...] = 0
            _route(grad_best, best, _by_rows(rows, across), _by_rows(rows, grad_across), nan)
            by_columns = _by_columns(columns, phases), _by_columns(columns, grad_phases)
            _route(grad_across, across, *by_columns, nan)
        _interleave(grad_phases, target[part], g.stride[1])

    _run(block, source)
    return _arranged(grad_x, x, order)


def add_at(grad_y: Array, x: Array, indices: Array) -> Array:
    """`ops.pool.add_at`."""
    return memory.copy_in_format(x, _added(grad_y, x, indices))


def _added(grad_y: Array, x: Array, indices: Array) -> Array:
    """`add_at` in contiguous memory; it adds in float64."""
    planes, pixels = prod(x.shape[:2]), prod(x.shape[2:])
    places = indices.reshape(planes, prod(grad_y.shape[2:])) + pixels * np.arange(planes)[:, None]
    sums = np.bincount(places.ravel(), grad_y.ravel(), planes * pixels)
    return sums.reshape(x.shape).astype(x.dtype)


def avg_pool2d(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """`ops.pool.avg_pool2d`."""
    g = expect.windows("avg_pool2d", x, kernel_size, stride, padding, 1, ceil_mode)
    expect.divisor(divisor_override)
    return _reduced(np.add, x, g, 0, _divisor(x.dtype, x.shape[2:], g, count_include_pad, divisor_override))


def avg_pool2d_backward(
    grad_y: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """`ops.pool.avg_pool2d_backward`."""
    g = expect.windows("avg_pool2d", x, kernel_size, stride, padding, 1, ceil_mode)
    expect.divisor(divisor_override)
    divisor = _divisor(x.dtype, x.shape[2:], g, count_include_pad, divisor_override)
    order = _order(x)
    upstream = _planes(grad_y, order)
    grad_x, target = _output(x, x.shape[2:], order)
    rows, columns = _taps(g, 0, x.shape[2]), _taps(g, 1, x.shape[3])

    def block(part: slice) -> None:
        each = np.divide(upstream[part], divisor, out=_scratch("best", upstream[part]))
        grad_phases = _gradient_phases(target[part], columns, g.stride[1])
        grad_across = _scratch("gradient across", each, height=x.shape[2])
        grad_across[...] = 0
        _spread(each, _by_rows(rows, grad_across))
        _spread(grad_across, _by_columns(columns, grad_phases))
        _interleave(grad_phases, target[part], g.stride[1])

    _run(block, target)
    return _arranged(grad_x, x, order)


def adaptive_avg_pool2d(x: Array, *, output_size: Sequence[int]) -> Array:
    """`ops.pool.adaptive_avg_pool2d`."""
    order = _order(x)
    source, (y, target) = _planes(x, order), _output(x, output_size, order)

    def block(part: slice) -> None:
        for u, v, rows, columns in _adaptive(x, output_size):
            _mean(source[part][:, rows, columns], out=target[part][:, u, v])

    _run(block, source)
    return y


def adaptive_avg_pool2d_backward(grad_y: Array, x: Array, *, output_size: Sequence[int]) -> Array:
    """`ops.pool.adaptive_avg_pool2d_backward`."""
    expect.some_windows("adaptive_avg_pool2d", grad_y)
    order = _order(x)
    upstream, (grad_x, target) = _planes(grad_y, order), _output(x, x.shape[2:], order)
    apart = all(n % size == 0 for n, size in zip(x.shape[2:], output_size, strict=True))

    def block(part: slice) -> None:
        grad = target[part]
        if not apart:
            grad[...] = 0
        for u, v, rows, columns in _adaptive(x, output_size):
            window = grad[:, rows, columns]
            each = upstream[part][:, u, v, None, None] / max(1, window.shape[1] * window.shape[2])
            if apart:
                window[...] = each
            else:
                window += each

    _run(block, target)
    return _arranged(grad_x, x, order)


def adaptive_max_pool2d(x: Array, *, output_size: Sequence[int]) -> tuple[Array, Array]:
    """`ops.pool.adaptive_max_pool2d`."""
    order = _order(x)
    source = _planes(x, order)
    (y, target), (indices, winners) = _output(x, output_size, order), _output(x, output_size, order, np.int64)
    for u, v, rows, columns in _adaptive(x, output_size):
        window = source[:, rows, columns]
        planes, height, width, neighbours = window.shape
        window = window.reshape(planes, height * width, neighbours)
        nan = np.isnan(window)
        last_nan = height * width - 1 - nan[:, ::-1].argmax(1)
        winner = np.where(nan.any(1), last_nan, window.argmax(1))
        target[:, u, v] = np.take_along_axis(window, winner[:, None], 1)[:, 0]
        winners[:, u, v] = (rows.start + winner // width) * x.shape[3] + columns.start + winner % width
    return y, indices


def adaptive_max_pool2d_backward(grad_y: Array, x: Array, indices: Array, *, output_size: Sequence[int]) -> Array:
    """`ops.pool.adaptive_max_pool2d_backward`."""
    expect.some_windows("adaptive_max_pool2d", grad_y)
    return _arranged(_added(grad_y, x, indices), x, _CONTIGUOUS)


# ---- volumes (N, C, D, H, W): the functions above within each frame, and then between frames


def max_pool3d(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Array:
    """`ops.pool.max_pool3d`."""
    inside, along = expect.frames("max_pool3d", x, kernel_size, stride, padding, dilation, ceil_mode)
    best = max_pool2d(_frames(x), **inside)
    y = max_pool2d(_stacked(best, x), **along)
    return _in_format(y.reshape(*y.shape[:3], *best.shape[2:]), x)


def max_pool3d_with_indices(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """`ops.pool.max_pool3d_with_indices`."""
    inside, along = expect.frames("max_pool3d", x, kernel_size, stride, padding, dilation, ceil_mode)
    best, places = max_pool2d_with_indices(_frames(x), **inside)
    y, winner = max_pool2d_with_indices(_stacked(best, x), **along)
    size = (*y.shape[:3], *best.shape[2:])
    return _in_format(y.reshape(size), x), _in_format(_voxels(places, winner, x).reshape(size), x)


def max_pool3d_backward(
    grad_y: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Array:
    """`ops.pool.max_pool3d_backward`."""
    inside, along = expect.frames("max_pool3d", x, kernel_size, stride, padding, dilation, ceil_mode)
    best = max_pool2d(_frames(x), **inside)
    grad_best = max_pool2d_backward(_stacked(grad_y, grad_y), _stacked(best, x), **along)
    grad_x = max_pool2d_backward(grad_best.reshape(best.shape), _frames(x), **inside)
    return _in_format(grad_x.reshape(x.shape), x)


def avg_pool3d(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """`ops.pool.avg_pool3d`."""
    inside, along = expect.frames("avg_pool3d", x, kernel_size, stride, padding, 1, ceil_mode)
    expect.divisor(divisor_override)
    first = None if divisor_override is None else 1
    mean = avg_pool2d(_frames(x), **inside, count_include_pad=count_include_pad, divisor_override=first)
    y = avg_pool2d(_stacked(mean, x), **along, count_include_pad=count_include_pad, divisor_override=divisor_override)
    return y.reshape(*y.shape[:3], *mean.shape[2:])


def avg_pool3d_backward(
    grad_y: Array,
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """`ops.pool.avg_pool3d_backward`."""
    inside, along = expect.frames("avg_pool3d", x, kernel_size, stride, padding, 1, ceil_mode)
    expect.divisor(divisor_override)
    first, pixels = None if divisor_override is None else 1, grad_y.shape[3] * grad_y.shape[4]
    means = blocks.empty((*x.shape[:3], pixels), like=x)
    grad_mean = avg_pool2d_backward(
        _stacked(grad_y, grad_y), means, **along, count_include_pad=count_include_pad, divisor_override=divisor_override
    )
    grad_mean = grad_mean.reshape(x.shape[0], x.shape[1] * x.shape[2], *grad_y.shape[3:])
    grad_x = avg_pool2d_backward(
        grad_mean, _frames(x), **inside, count_include_pad=count_include_pad, divisor_override=first
    )
    return grad_x.reshape(x.shape)


def adaptive_avg_pool3d(x: Array, *, output_size: Sequence[int]) -> Array:
    """`ops.pool.adaptive_avg_pool3d`."""
    depth, *size = output_size
    mean = adaptive_avg_pool2d(_frames(x), output_size=size)
    y = adaptive_avg_pool2d(_stacked(mean, x), output_size=(depth, prod(size)))
    return y.reshape(*x.shape[:2], *output_size)


def adaptive_avg_pool3d_backward(grad_y: Array, x: Array, *, output_size: Sequence[int]) -> Array:
    """`ops.pool.adaptive_avg_pool3d_backward`."""
    expect.some_windows("adaptive_avg_pool3d", grad_y)
    depth, *size = output_size
    means = blocks.empty((*x.shape[:3], prod(size)), like=x)
    grad_mean = adaptive_avg_pool2d_backward(_stacked(grad_y, grad_y), means, output_size=(depth, prod(size)))
    grad_mean = grad_mean.reshape(x.shape[0], x.shape[1] * x.shape[2], *size)
    return adaptive_avg_pool2d_backward(grad_mean, _frames(x), output_size=size).reshape(x.shape)


def adaptive_max_pool3d(x: Array, *, output_size: Sequence[int]) -> tuple[Array, Array]:
    """`ops.pool.adaptive_max_pool3d`."""
    depth, *size = output_size
    best, places = adaptive_max_pool2d(_frames(x), output_size=size)
    y, winner = adaptive_max_pool2d(_stacked(best, x), output_size=(depth, prod(size)))
    shape = (*x.shape[:2], *output_size)
    return y.reshape(shape), _voxels(places, winner, x).reshape(shape)


def adaptive_max_pool3d_backward(grad_y: Array, x: Array, indices: Array, *, output_size: Sequence[int]) -> Array:
    """`ops.pool.adaptive_max_pool3d_backward`."""
    expect.some_windows("adaptive_max_pool3d", grad_y)
    return _added(grad_y, x, indices)


def _frames(x: Array) -> Array:
    """Volumes (N, C, D, H, W) as images (N, C D, H, W), one for each frame."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def _stacked(y: Array, x: Array) -> Array:
    """Results for the frames of ``x`` as images (N, C, D, h w), with a column for each pixel of a frame."""
    return y.reshape(*x.shape[:3], y.shape[-2] * y.shape[-1])


def _voxels(places: Array, winner: Array, x: Array) -> Array:
    """`ops.pool._voxels`."""
    frame = winner // (places.shape[-2] * places.shape[-1])
    return frame * prod(x.shape[3:]) + np.take_along_axis(_stacked(places, x), frame, 2)


def _in_format(result: Array, x: Array) -> Array:
    """``result`` in the memory format of ``x``: contiguous if it has none of the others."""
    last = (0, 2, 3, 4, 1) if x.shape[1] > 1 and x.strides[1] == x.itemsize < x.strides[-1] else (1, 2, 3, 4, 0)
    if last[-1] == 0 and not memory.is_batch_last(x):
        return result
    turned = blocks.empty([result.shape[axis] for axis in last], like=result)
    turned[...] = result.transpose(last)
    return turned.transpose([last.index(axis) for axis in range(5)])


# ---- planes (P, H, W, K)

_Order = tuple[int, int, int, int]
_CONTIGUOUS: _Order = (0, 1, 2, 3)
_CHANNELS_LAST: _Order = (0, 2, 3, 1)
_BATCH_LAST: _Order = (1, 2, 3, 0)


def _order(x: Array) -> _Order:
    """The axes (N, C, H, W) in the order of the memory format of ``x``: contiguous if it has none of the others."""
    if x.shape[1] > 1 and x.strides[1] == x.itemsize < x.strides[3]:
        return _CHANNELS_LAST
    return _BATCH_LAST if memory.is_batch_last(x) else _CONTIGUOUS


def _planes(x: Array, order: _Order) -> Array:
    """``x`` as planes: a view if it has this memory format, otherwise a copy."""
    turned = x if order == _CONTIGUOUS else x.transpose(order)
    return _as_planes(np.ascontiguousarray(turned), order)


def _as_planes(turned: Array, order: _Order) -> Array:
    shape = turned.shape
    return turned.reshape(shape[0] * shape[1], *shape[2:], 1) if order == _CONTIGUOUS else turned


def _output(x: Array, size: Sequence[int], order: _Order, dtype: Any = None) -> tuple[Array, Array]:
    """A new array (N, C, *size) in this memory format, and its planes."""
    shape = (*x.shape[:2], *size)
    turned = blocks.empty([shape[axis] for axis in order], like=x, dtype=dtype)
    if order == _CONTIGUOUS:
        return turned, _as_planes(turned, order)
    return turned.transpose([order.index(axis) for axis in range(4)]), turned


def _arranged(result: Array, x: Array, order: _Order) -> Array:
    """``result``, which is like ``x``, with its axes in the same order in memory as those of ``x``."""
    axes = sorted(range(4), key=lambda axis: (-abs(x.strides[axis]), axis))
    if result.transpose(axes).flags.c_contiguous:
        return result
    arranged = blocks.empty_like(x)
    arranged[...] = result
    return arranged


def _run(block: Callable[[slice], None], planes: Array) -> None:
    """``block`` for all planes, so many at once that they stay in cache."""
    numbers, count = tuning.TUNING, planes.shape[0]
    parts = blocks.blocks(count, planes.nbytes // max(1, count), block_bytes=numbers.pool_block_bytes)
    blocks.run(block, parts, parallel=planes.nbytes >= numbers.pool_threads_bytes)


def _scratch(
    name: str, like: Array, *, height: int | None = None, width: int | None = None, dtype: Any = None
) -> Array:
    """Scratch memory for planes like these, of another height or width if given."""
    planes, h, w, neighbours = like.shape
    shape = planes, h if height is None else height, w if width is None else width, neighbours
    return blocks.scratch(f"pool {name}", shape, like=like, dtype=dtype)


# ---- windows along one axis


class _Tap(NamedTuple):
    """One pixel of the windows along an axis: a range of windows, and where this pixel of them is in the image.

    Attributes:
        windows: The windows in which it is inside the image.
        everywhere: Whether these are all.
        pixels: Its places in the image.
        phase: Its places modulo the stride.
        steps: Its places among all pixels of this phase: adjacent ones.
        alone: Whether no other pixel of the windows has this phase, so that each place is in one window at most.
    """

    windows: slice
    everywhere: bool
    pixels: slice
    phase: int
    steps: slice
    alone: bool

    def start(self, stride: int) -> int:
        """Its place for the first window, which may be outside the image."""
        place: int = self.pixels.start - self.windows.start * stride
        return place


def _taps(g: Windows, axis: int, n: int) -> tuple[_Tap, ...]:
    """The taps along the rows or columns of an image of ``n``; those never inside the image are left out."""
    return _taps_of(n, g.kernel[axis], g.stride[axis], g.dilation[axis], g.pad[axis][0], g.size[axis])


@lru_cache(1024)
def _taps_of(n: int, kernel: int, stride: int, dilation: int, pad: int, count: int) -> tuple[_Tap, ...]:
    phases = [(number * dilation - pad) % stride for number in range(kernel)]
    taps = []
    for start in range(-pad, kernel * dilation - pad, dilation):
        first, end = max(0, -(start // stride)), min(count, (n - 1 - start) // stride + 1)
        if first < end:
            pixel, number = start + first * stride, end - first
            step = pixel // stride
            taps.append(
                _Tap(
                    slice(first, end),
                    number == count,
                    slice(pixel, pixel + (number - 1) * stride + 1, stride),
                    pixel % stride,
                    slice(step, step + number),
                    phases.count(pixel % stride) == 1,
                )
            )
    return tuple(taps)


class _View(NamedTuple):
    """The pixels of a tap, and how to get its windows from an array of one value for each window."""

    tap: _Tap
    pixels: Array
    axis: int

    def windows(self, values: Array) -> Array:
        if self.tap.everywhere:
            return values
        return values[:, self.tap.windows] if self.axis == 1 else values[:, :, self.tap.windows]


def _by_rows(taps: Sequence[_Tap], image: Array) -> list[_View]:
    return [_View(tap, image[:, tap.pixels], 1) for tap in taps]


def _by_columns(taps: Sequence[_Tap], phases: dict[int, Array]) -> list[_View]:
    return [_View(tap, phases[tap.phase][:, :, tap.steps], 2) for tap in taps]


# Columns of one phase are every stride-th one. Where pixels have neighbours in memory (K > 1), the columns of a phase
# are copied together, because NumPy is fast only on long runs.


def _phases(image: Array, taps: Sequence[_Tap], stride: int) -> dict[int, Array]:
    """The columns of each phase that a tap needs."""
    used = sorted({tap.phase for tap in taps})
    if stride == 1 or image.shape[3] == 1:
        return {phase: image[:, :, phase::stride] for phase in used}
    phases = {}
    for phase in used:
        columns = _columns(phase, image.shape[2], stride)
        phases[phase] = _scratch(f"phase {phase}", image, width=len(columns))
        np.take(image, columns, axis=2, out=phases[phase], mode="clip")  # without the mode it would copy ``out``
    return phases


@lru_cache(1024)
def _columns(phase: int, n: int, stride: int) -> Array:
    return np.arange(phase, n, stride)


def _gradient_phases(grad: Array, taps: Sequence[_Tap], stride: int) -> dict[int, Array]:
    """Zeros for the columns of each phase that a tap needs: views of ``grad``, or to be copied by `_interleave`."""
    used = sorted({tap.phase for tap in taps})
    if stride == 1 or grad.shape[3] == 1:
        grad[...] = 0
        return {phase: grad[:, :, phase::stride] for phase in used}
    if len(used) < stride:
        grad[...] = 0
    phases = {}
    for phase in used:
        width = len(range(phase, grad.shape[2], stride))
        phases[phase] = _scratch(f"gradient phase {phase}", grad, width=width)
        phases[phase][...] = 0
    return phases


def _interleave(phases: dict[int, Array], grad: Array, stride: int) -> None:
    """Copy the phases of `_gradient_phases` to their columns of ``grad``."""
    if stride == 1 or grad.shape[3] == 1:
        return
    whole = np.dtype((np.void, grad.shape[3] * grad.itemsize))  # all neighbours at once: twice as fast
    for phase, columns in phases.items():
        grad.view(whole)[:, :, phase::stride] = columns.view(whole)


# ---- reductions and their gradients


def _lowest(x: Array) -> float:
    """Where a window has no pixel in the image."""
    return -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min


def _reduced(combine: np.ufunc, x: Array, g: Windows, start: float, divisor: Array | None = None) -> Array:
    """``combine`` over all pixels of each window, between rows and then along them."""
    order = _order(x)
    source, (y, target) = _planes(x, order), _output(x, g.size, order)
    rows, columns = _taps(g, 0, x.shape[2]), _taps(g, 1, x.shape[3])

    def block(part: slice) -> None:
        down = _scratch("down", source[part], height=g.size[0])
        _reduce(combine, _by_rows(rows, source[part]), down, start)
        _reduce(combine, _by_columns(columns, _phases(down, columns, g.stride[1])), target[part], start)
        if divisor is not None:
            np.divide(target[part], divisor, out=target[part])

    _run(block, source)
    return y


def _reduce(combine: np.ufunc, views: Sequence[_View], out: Array, start: float) -> None:
    """``combine`` over the taps of one axis, for each window."""
    views = sorted(views, key=lambda view: not view.tap.everywhere)
    everywhere = [view.pixels for view in views[:2] if view.tap.everywhere]
    if len(everywhere) == 2:
        combine(*everywhere, out=out)
    elif everywhere:
        np.copyto(out, everywhere[0])
    else:
        out[...] = start
    for view in views[len(everywhere) :]:
        windows = view.windows(out)
        combine(windows, view.pixels, out=windows)


def _decided(upstream: Array, best: Array) -> Iterator[tuple[Array, bool]]:
    """The gradients of windows without NaN, and then of those with NaN, each with zeros for the others."""
    grad = _scratch("gradient", upstream)
    nan = np.isnan(best) if blocks.may_hold_nan(best) else None
    if nan is None:
        grad[...] = upstream
    else:
        keep_where(~nan, upstream, out=grad)
    yield grad, False
    if nan is not None:
        keep_where(nan, upstream, out=grad)
        yield grad, True


def _route(rest: Array, best: Array, pixels: Sequence[_View], gradients: Sequence[_View], nan: bool) -> None:
    """Add the gradient of each window to its first pixel that equals ``best``; with ``nan`` to its last NaN.

    What a pixel takes is subtracted from ``rest``, so that the others get 0. The last pixel takes what is left.
    """
    bits = BITS[rest.itemsize]
    left = rest.view(bits)
    *pairs, (_, last) = list(zip(pixels, gradients, strict=True))[:: -1 if nan else 1]
    for pixel, gradient in pairs:
        before = pixel.windows(left)
        won = _scratch("won", before, dtype=bool)
        if nan:
            np.isnan(pixel.pixels, out=won)
        else:
            np.equal(pixel.pixels, pixel.windows(best), out=won)
        directly = gradient.tap.alone and not nan  # the gradients of windows without NaN are there already
        taken = gradient.pixels if directly else _scratch("taken", before, dtype=rest.dtype)
        keep_where(won, before, out=taken.view(bits))
        np.subtract(before, taken.view(bits), out=before)  # exact, also for infinity
        if not directly:
            np.add(gradient.pixels, taken, out=gradient.pixels)
    _add(last, last.windows(rest), directly=last.tap.alone and not nan)


def _spread(each: Array, gradients: Sequence[_View]) -> None:
    """Add the gradient of each window to all its pixels."""
    for view in gradients:
        _add(view, view.windows(each), directly=view.tap.alone)


def _add(view: _View, gradient: Array, *, directly: bool) -> None:
    if directly:
        np.copyto(view.pixels, gradient)
    else:
        np.add(view.pixels, gradient, out=view.pixels)


@lru_cache(1024)
def _divisor(dtype: Any, shape: tuple[int, int], g: Windows, count_include_pad: bool, override: int | None) -> Array:
    """The divisor of each window: (h, w, 1), or one number if all are equal."""
    if override is not None:
        return np.array(override, dtype)
    counts = []
    for n, k, s, count, (pad, _) in zip(shape, g.kernel, g.stride, g.size, g.pad, strict=True):
        start = np.arange(count) * s - pad
        end = np.minimum(start + k, n + pad)
        counts.append(end - start if count_include_pad else np.minimum(end, n) - np.maximum(start, 0))
    sizes = (counts[0][:, None, None] * counts[1][:, None]).astype(dtype)
    return sizes[0, 0, 0] if (sizes == sizes[0, 0, 0]).all() else sizes


def _adaptive(x: Array, output_size: Sequence[int]) -> Iterator[tuple[int, int, slice, slice]]:
    """``(u, v, rows, columns)`` of each window of an adaptive pooling."""
    down, across = (
        [slice(index * n // size, -(-(index + 1) * n // size)) for index in range(size)]
        for n, size in zip(x.shape[2:], output_size, strict=True)
    )
    for u, rows in enumerate(down):
        for v, columns in enumerate(across):
            yield u, v, rows, columns


def _mean(window: Array, out: Array) -> None:
    """The mean of the pixels of (P, H, W, K), for each plane and neighbour."""
    planes, height, width, neighbours = window.shape
    pixels = height * width
    if neighbours > 1 and pixels:
        total = _total(_total(window))
    elif 0 < pixels <= tuning.TUNING.pool_few_pixels:
        first, *others = (window[:, i, j] for i in range(height) for j in range(width))
        total = sum(others, first)
    else:
        total = window[..., 0].sum((1, 2)).reshape(planes, 1)
    np.divide(total, pixels, out=out)


def _total(x: Array) -> Array:
    """The sum along the second axis, of one half plus the other again and again: so rounding errors stay few."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        halves = x[:, :half] + x[:, half : 2 * half]
        if x.shape[1] % 2:
            halves[:, 0] += x[:, -1]
        x = halves
    return x[:, 0]
