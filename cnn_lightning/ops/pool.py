"""Pooling: the largest or the mean value of every window, and the way of a gradient back to the pixels it came from."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cnn_lightning.ops import _blocks
from cnn_lightning.ops._geometry import Pair, pair
from cnn_lightning.ops._types import Array


def max_pool2d(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Array:
    """``y[n, c, u, v] = max_{i, j} x[n, c, u*stride + i*dilation - padding, v*stride + j*dilation - padding]``.

    Pixels outside the image never win; NaN always does.

    Args:
        x: Images (N, C, H, W).
        kernel_size: Size of the window, one number or (rows, columns), as are the next three.
        stride: Step between windows, the kernel's size if None.
        padding: How far windows may begin outside, at most half the kernel's size.
        dilation: Step between a window's pixels.
        ceil_mode: Whether a last window that is only partly inside counts.

    Raises:
        TypeError: Options that are no integers.
        RuntimeError: Options or sizes that leave no window.
    """
    g = _geometry(x, kernel_size, stride, padding, dilation, ceil_mode)
    y = _output(x, g)

    def block(part: slice) -> None:
        padded = _padded(x[part], g)
        for index, window in enumerate(g.windows()):
            if index == 0:
                y[part] = padded[window]
            else:
                np.maximum(y[part], padded[window], out=y[part])

    _blocks.run(block, _parts(x), like=x)
    return y


def max_pool2d_with_indices(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """`max_pool2d`, and for each output the place ``row * W + column`` of the pixel that won, as int64."""
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    y = max_pool2d(x, **options, ceil_mode=ceil_mode)  # type: ignore[arg-type]
    g = _geometry(x, kernel_size, stride, padding, dilation, ceil_mode)
    slots = _winners(_padded(x, g), g).astype(np.int64)
    (top, _), (left, _) = g.pad
    rows = np.arange(g.size[0], like=x)[:, None] * g.stride[0] + slots // g.kernel[1] * g.dilation[0] - top
    columns = np.arange(g.size[1], like=x) * g.stride[1] + slots % g.kernel[1] * g.dilation[1] - left
    places = np.empty_like(y, dtype=np.int64)
    np.add(rows * x.shape[3], columns, out=places)
    return y, places


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
    """Each window's gradient goes to the pixel that won: the first of equal ones; of several NaN the last."""
    g = _geometry(x, kernel_size, stride, padding, dilation, ceil_mode)
    grad_x = _blocks.empty_like(x)

    def block(part: slice) -> None:
        padded, upstream = _padded(x[part], g), grad_y[part]
        grad = _scratch("pool gradient", x[part], g)
        grad[...] = 0
        bits, share = np.dtype(f"i{x.itemsize}"), np.empty_like(upstream)
        for window, won in _wins(padded, g):
            # By integers, as an infinite gradient times 0 would be NaN.
            np.multiply(upstream.view(bits), won.view(np.int8), out=share.view(bits), dtype=bits)
            grad[window] += share
        grad_x[part] = _inside(grad, x, g)

    _blocks.run(block, _parts(x), like=x)
    return grad_x


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
    """``y[n, c, u, v] = sum_{i, j} x[n, c, u*stride + i - padding, v*stride + j - padding] / divisor``.

    The divisor is the window's size, without what is beyond the padding (``ceil_mode``) and, unless
    ``count_include_pad``, without the padding; or ``divisor_override``. Arguments and errors otherwise as `max_pool2d`.

    Raises:
        RuntimeError: Also for a ``divisor_override`` of 0.
    """
    g = _geometry(x, kernel_size, stride, padding, 1, ceil_mode, "avg_pool2d")
    divisor = _divisor(x, g, count_include_pad, divisor_override)
    y = _output(x, g)

    def block(part: slice) -> None:
        padded = _padded(x[part], g, 0)
        for index, window in enumerate(g.windows()):
            if index == 0:
                y[part] = padded[window]
            else:
                y[part] += padded[window]
        y[part] /= divisor

    _blocks.run(block, _parts(x), like=x)
    return y


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
    """Every pixel of a window gets the window's gradient over its divisor."""
    g = _geometry(x, kernel_size, stride, padding, 1, ceil_mode, "avg_pool2d")
    divisor = _divisor(x, g, count_include_pad, divisor_override)
    grad_x = _blocks.empty_like(x)

    def block(part: slice) -> None:
        share = grad_y[part] / divisor
        grad = _scratch("pool gradient", x[part], g)
        grad[...] = 0
        for window in g.windows():
            grad[window] += share
        grad_x[part] = _inside(grad, x, g)

    _blocks.run(block, _parts(x), like=x)
    return grad_x


def adaptive_avg_pool2d(x: Array, *, output_size: Sequence[int]) -> Array:
    """The mean of window (u, v): rows ``floor(u H / h)`` to ``ceil((u + 1) H / h)``, columns likewise.

    Args:
        x: Images (N, C, H, W).
        output_size: (h, w).
    """
    rows, columns = (_adaptive(n, size) for n, size in zip(x.shape[2:], output_size, strict=True))
    y = _like(x, (len(rows), len(columns)))
    with np.errstate(invalid="ignore", over="ignore"):
        for u, row in enumerate(rows):
            for v, column in enumerate(columns):
                window = x[:, :, row, column]
                np.divide(window.sum((2, 3)), window.shape[2] * window.shape[3], out=y[:, :, u, v])
    return y


def adaptive_avg_pool2d_backward(grad_y: Array, x: Array, *, output_size: Sequence[int]) -> Array:
    """Every pixel of a window gets the window's gradient over its size.

    Raises:
        RuntimeError: No windows.
    """
    _check_windows("adaptive_avg_pool2d", grad_y)
    rows, columns = (_adaptive(n, size) for n, size in zip(x.shape[2:], output_size, strict=True))
    grad_x = _blocks.empty_like(x)
    grad_x[...] = 0
    for u, row in enumerate(rows):
        for v, column in enumerate(columns):
            count = (row.stop - row.start) * (column.stop - column.start)
            grad_x[:, :, row, column] += (grad_y[:, :, u, v] / max(1, count))[:, :, None, None]
    return grad_x


def adaptive_max_pool2d(x: Array, *, output_size: Sequence[int]) -> tuple[Array, Array]:
    """The maximum of each window of `adaptive_avg_pool2d`, and the place of the pixel that won, as int64."""
    rows, columns = (_adaptive(n, size) for n, size in zip(x.shape[2:], output_size, strict=True))
    y = _like(x, (len(rows), len(columns)))
    indices = np.empty_like(y, dtype=np.int64)
    for u, row in enumerate(rows):
        for v, column in enumerate(columns):
            height, width = row.stop - row.start, column.stop - column.start
            window = x[:, :, row, column].reshape(x.shape[0], x.shape[1], height * width)
            nan = np.isnan(window)
            last_nan = height * width - 1 - nan[:, :, ::-1].argmax(2)
            winner = np.where(nan.any(2), last_nan, window.argmax(2))
            y[:, :, u, v] = np.take_along_axis(window, winner[:, :, None], 2)[:, :, 0]
            indices[:, :, u, v] = (row.start + winner // width) * x.shape[3] + column.start + winner % width
    return y, indices


def adaptive_max_pool2d_backward(grad_y: Array, x: Array, indices: Array, *, output_size: Sequence[int]) -> Array:
    """Each window's gradient added at the pixel that won.

    Raises:
        RuntimeError: No windows.
    """
    _check_windows("adaptive_max_pool2d", grad_y)
    n, c, h, w = x.shape
    grad = np.zeros_like(x, shape=(n, c, h * w), order="C")
    for u in range(output_size[0]):
        for v in range(output_size[1]):
            place = indices[:, :, u, v, None]
            both = np.take_along_axis(grad, place, 2) + grad_y[:, :, u, v, None]
            np.put_along_axis(grad, place, both, 2)
    grad_x = _blocks.empty_like(x)
    grad_x[...] = grad.reshape(x.shape)
    return grad_x


def _check_windows(op: str, grad_y: Array) -> None:
    """An output of size 0 is allowed, but as in torch it has no gradient."""
    if 0 in grad_y.shape[1:]:
        raise RuntimeError(f"{op}: output_size: expected at least 1 for a gradient, got shape {tuple(grad_y.shape)}")


class _Geometry(NamedTuple):
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[tuple[int, int], tuple[int, int]]
    size: tuple[int, int]

    def windows(self) -> Iterator[tuple[slice, slice, slice, slice]]:
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                rows, columns = (
                    slice(k * d, k * d + s * (n - 1) + 1, s)
                    for k, d, s, n in zip((i, j), self.dilation, self.stride, self.size, strict=True)
                )
                yield slice(None), slice(None), rows, columns


def _geometry(
    x: Array,
    kernel_size: Pair,
    stride: Pair | None,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
    op: str = "max_pool2d",
) -> _Geometry:
    kernel, padding = pair(kernel_size, f"{op}: kernel_size"), pair(padding, f"{op}: padding")
    step = kernel if stride is None or stride == () else pair(stride, f"{op}: stride")
    dilation = pair(dilation, f"{op}: dilation")
    if x.dtype.kind == "b":
        raise NotImplementedError(f"{op}: x: expected a dtype of numbers, got {x.dtype}")
    if x.ndim != 4:
        raise RuntimeError(f"{op}: x: expected 4 axes, got shape {tuple(x.shape)}")
    if min(*kernel, *step, *dilation) < 1:
        raise RuntimeError(
            f"{op}: kernel_size, stride, dilation: expected at least 1, got {kernel}, {step}, {dilation}"
        )
    if any(p > k // 2 or p < 0 for p, k in zip(padding, kernel, strict=True)):
        raise RuntimeError(f"{op}: padding: expected at most half the kernel {kernel} and not negative, got {padding}")
    pads, sizes = [], []
    for n, k, s, p, d in zip(x.shape[2:], kernel, step, padding, dilation, strict=True):
        reach = n + 2 * p - d * (k - 1) - 1
        count = (-(-reach // s) if ceil_mode else reach // s) + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1  # a window that would begin beyond the image and its left padding
        if count < 1:
            raise RuntimeError(f"{op}: x: expected an image of at least {d * (k - 1) + 1 - 2 * p}, got {n}")
        sizes.append(count)
        pads.append((p, max(0, (count - 1) * s + d * (k - 1) + 1 - n - p)))
    return _Geometry(kernel, step, dilation, (pads[0], pads[1]), (sizes[0], sizes[1]))


def _output(x: Array, g: _Geometry) -> Array:
    return _like(x, g.size)


def _like(x: Array, size: Sequence[int]) -> Array:
    """An output of this size in the memory format of ``x``."""
    if _is_channels_last(x):
        return _blocks.empty((x.shape[0], *size, x.shape[1]), like=x).transpose(0, 3, 1, 2)
    return _blocks.empty((*x.shape[:2], *size), like=x)


def _is_channels_last(x: Array) -> bool:
    return bool(x.shape[1] > 1 and x.strides[1] == x.itemsize)


def _inside(padded: Array, x: Array, g: _Geometry) -> Array:
    (top, _), (left, _) = g.pad
    return padded[:, :, top : top + x.shape[2], left : left + x.shape[3]]


def _adaptive(n: int, size: int) -> list[slice]:
    return [slice(index * n // size, -(-(index + 1) * n // size)) for index in range(size)]


def _divisor(x: Array, g: _Geometry, count_include_pad: bool, override: int | None) -> Array:
    """What each window's sum is divided by: (h, w), in the dtype of ``x``."""
    if override is not None:
        if not isinstance(override, int):
            raise TypeError(f"avg_pool2d: divisor_override: expected an integer, got {override!r}")
        if override == 0:
            raise RuntimeError("avg_pool2d: divisor_override: expected a number other than 0, got 0")
        return np.full_like(x, override, shape=g.size, order="C")
    counts = []
    for n, k, s, count, (pad, _) in zip(x.shape[2:], g.kernel, g.stride, g.size, g.pad, strict=True):
        start = np.arange(count, like=x) * s - pad
        end = np.minimum(start + k, n + pad)
        counts.append(end - start if count_include_pad else np.minimum(end, n) - np.maximum(start, 0))
    sizes: Array = counts[0][:, None] * counts[1]
    return sizes.astype(x.dtype)


def _parts(x: Array) -> list[slice]:
    return _blocks.blocks(x.shape[0], 4 * x.shape[1] * x.shape[2] * x.shape[3] * x.itemsize)


def _scratch(name: str, x: Array, g: _Geometry) -> Array:
    """Working memory for ``x`` and its padding, in its memory format."""
    n, c, height, width = *x.shape[:2], x.shape[2] + sum(g.pad[0]), x.shape[3] + sum(g.pad[1])
    if _is_channels_last(x):
        return _blocks.scratch(name, (n, height, width, c), like=x).transpose(0, 3, 1, 2)
    return _blocks.scratch(name, (n, c, height, width), like=x)


def _padded(x: Array, g: _Geometry, value: float | None = None) -> Array:
    """``x`` with the value around it that never wins, or the given one."""
    if not any(map(any, g.pad)):
        return x
    if value is None:
        value = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    padded = _scratch("pool padded", x, g)
    padded[...] = value
    _inside(padded, x, g)[...] = x
    return padded


def _wins(padded: Array, g: _Geometry) -> Iterator[tuple[tuple[slice, ...], Array]]:
    """Each pixel of the windows in turn: where all windows have it, and in which of them it won."""
    windows = list(g.windows())
    best = padded[windows[0]].copy("K")
    for window in windows[1:]:
        np.maximum(best, padded[window], out=best)
    if not _blocks.lowest(best) > -np.inf:  # NaN, or minus infinity, which the padding has too
        slots = _winners(padded, g)
        for index, window in enumerate(windows):
            yield window, slots == index
        return
    open_, won = np.ones_like(best, dtype=bool), np.empty_like(best, dtype=bool)
    for window in windows:
        np.equal(padded[window], best, out=won)
        np.logical_and(won, open_, out=won)
        np.logical_xor(open_, won, out=open_)
        yield window, won


def _winners(padded: Array, g: _Geometry) -> Array:
    """Which pixel of its window won, counted row by row: the first that is not padding if all are minus infinity."""
    slot = np.int16 if g.kernel[0] * g.kernel[1] < 2**15 else np.int32
    (top, bottom), (left, right) = g.pad
    image = np.zeros_like(padded, shape=padded.shape[2:], dtype=bool, order="C")
    image[top : image.shape[0] - bottom, left : image.shape[1] - right] = True
    best = slots = found = None
    for index, window in enumerate(g.windows()):
        value, is_image = padded[window], image[window[2:]]
        if best is None or slots is None or found is None:
            best, slots, found = value.copy("K"), np.zeros_like(value, dtype=slot), is_image
        else:
            won = (value > best) | np.isnan(value) | (is_image & ~found)
            found = found | is_image
            np.copyto(best, value, where=won)
            np.copyto(slots, slot(index), where=won)
    assert slots is not None
    return slots
