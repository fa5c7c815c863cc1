"""Pooling: the largest value or the mean of every window, and the gradients."""

from collections.abc import Iterator, Sequence

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.expect import Windows
from cnn_lightning.ops.fast import blocks
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
    y = _output(x, g)

    def block(part: slice) -> None:
        padded = _padded(x[part], g)
        for index, window in enumerate(_windows_of(g)):
            if index == 0:
                y[part] = padded[window]
            else:
                np.maximum(y[part], padded[window], out=y[part])

    blocks.run(block, _parts(x))
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
    """`ops.pool.max_pool2d_with_indices`."""
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    y = max_pool2d(x, **options, ceil_mode=ceil_mode)  # type: ignore[arg-type]
    g = expect.windows("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode)
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
    """`ops.pool.max_pool2d_backward`."""
    g = expect.windows("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode)
    grad_x = blocks.empty_like(x)

    def block(part: slice) -> None:
        padded, upstream = _padded(x[part], g), grad_y[part]
        grad = _scratch("pool gradient", x[part], g)
        grad[...] = 0
        bits, routed = np.dtype(f"i{x.itemsize}"), np.empty_like(upstream)
        for window, won in _wins(padded, g):
            # As integers, since an infinite gradient times 0 would be NaN.
            np.multiply(upstream.view(bits), won.view(np.int8), out=routed.view(bits), dtype=bits)
            grad[window] += routed
        grad_x[part] = _inside(grad, x, g)

    blocks.run(block, _parts(x))
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
    """`ops.pool.avg_pool2d`."""
    g = expect.windows("avg_pool2d", x, kernel_size, stride, padding, 1, ceil_mode)
    divisor = _divisor(x, g, count_include_pad, divisor_override)
    y = _output(x, g)

    def block(part: slice) -> None:
        padded = _padded(x[part], g, 0)
        for index, window in enumerate(_windows_of(g)):
            if index == 0:
                y[part] = padded[window]
            else:
                y[part] += padded[window]
        y[part] /= divisor

    blocks.run(block, _parts(x))
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
    """`ops.pool.avg_pool2d_backward`."""
    g = expect.windows("avg_pool2d", x, kernel_size, stride, padding, 1, ceil_mode)
    divisor = _divisor(x, g, count_include_pad, divisor_override)
    grad_x = blocks.empty_like(x)

    def block(part: slice) -> None:
        mean = grad_y[part] / divisor
        grad = _scratch("pool gradient", x[part], g)
        grad[...] = 0
        for window in _windows_of(g):
            grad[window] += mean
        grad_x[part] = _inside(grad, x, g)

    blocks.run(block, _parts(x))
    return grad_x


def adaptive_avg_pool2d(x: Array, *, output_size: Sequence[int]) -> Array:
    """`ops.pool.adaptive_avg_pool2d`."""
    rows, columns = (_adaptive(n, size) for n, size in zip(x.shape[2:], output_size, strict=True))
    y = _like(x, (len(rows), len(columns)))
    with np.errstate(invalid="ignore", over="ignore"):
        for u, row in enumerate(rows):
            for v, column in enumerate(columns):
                window = x[:, :, row, column]
                np.divide(window.sum((2, 3)), window.shape[2] * window.shape[3], out=y[:, :, u, v])
    return y


def adaptive_avg_pool2d_backward(grad_y: Array, x: Array, *, output_size: Sequence[int]) -> Array:
    """`ops.pool.adaptive_avg_pool2d_backward`."""
    expect.some_windows("adaptive_avg_pool2d", grad_y)
    rows, columns = (_adaptive(n, size) for n, size in zip(x.shape[2:], output_size, strict=True))
    grad_x = blocks.empty_like(x)
    grad_x[...] = 0
    for u, row in enumerate(rows):
        for v, column in enumerate(columns):
            count = (row.stop - row.start) * (column.stop - column.start)
            grad_x[:, :, row, column] += (grad_y[:, :, u, v] / max(1, count))[:, :, None, None]
    return grad_x


def adaptive_max_pool2d(x: Array, *, output_size: Sequence[int]) -> tuple[Array, Array]:
    """`ops.pool.adaptive_max_pool2d`."""
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
    """`ops.pool.adaptive_max_pool2d_backward`."""
    expect.some_windows("adaptive_max_pool2d", grad_y)
    n, c, h, w = x.shape
    grad = np.zeros_like(x, shape=(n, c, h * w), order="C")
    for u in range(output_size[0]):
        for v in range(output_size[1]):
            place = indices[:, :, u, v, None]
            both = np.take_along_axis(grad, place, 2) + grad_y[:, :, u, v, None]
            np.put_along_axis(grad, place, both, 2)
    grad_x = blocks.empty_like(x)
    grad_x[...] = grad.reshape(x.shape)
    return grad_x


def _windows_of(g: Windows) -> Iterator[tuple[slice, slice, slice, slice]]:
    """For each pixel of the window, its places for all windows."""
    for i in range(g.kernel[0]):
        for j in range(g.kernel[1]):
            rows, columns = (
                slice(k * d, k * d + s * (n - 1) + 1, s)
                for k, d, s, n in zip((i, j), g.dilation, g.stride, g.size, strict=True)
            )
            yield slice(None), slice(None), rows, columns


def _output(x: Array, g: Windows) -> Array:
    return _like(x, g.size)


def _like(x: Array, size: Sequence[int]) -> Array:
    """An output of this size in the memory format of ``x``."""
    if _is_channels_last(x):
        return blocks.empty((x.shape[0], *size, x.shape[1]), like=x).transpose(0, 3, 1, 2)
    return blocks.empty((*x.shape[:2], *size), like=x)


def _is_channels_last(x: Array) -> bool:
    return bool(x.shape[1] > 1 and x.strides[1] == x.itemsize)


def _inside(padded: Array, x: Array, g: Windows) -> Array:
    (top, _), (left, _) = g.pad
    return padded[:, :, top : top + x.shape[2], left : left + x.shape[3]]


def _adaptive(n: int, size: int) -> list[slice]:
    return [slice(index * n // size, -(-(index + 1) * n // size)) for index in range(size)]


def _divisor(x: Array, g: Windows, count_include_pad: bool, override: int | None) -> Array:
    """The divisor of each window: (h, w), in the dtype of ``x``."""
    expect.divisor(override)
    if override is not None:
        return np.full_like(x, override, shape=g.size, order="C")
    counts = []
    for n, k, s, count, (pad, _) in zip(x.shape[2:], g.kernel, g.stride, g.size, g.pad, strict=True):
        start = np.arange(count, like=x) * s - pad
        end = np.minimum(start + k, n + pad)
        counts.append(end - start if count_include_pad else np.minimum(end, n) - np.maximum(start, 0))
    sizes: Array = counts[0][:, None] * counts[1]
    return sizes.astype(x.dtype)


def _parts(x: Array) -> list[slice]:
    return blocks.blocks(x.shape[0], 4 * x.shape[1] * x.shape[2] * x.shape[3] * x.itemsize)


def _scratch(name: str, x: Array, g: Windows) -> Array:
    """Working memory for ``x`` and its padding, in its memory format."""
    n, c, height, width = *x.shape[:2], x.shape[2] + sum(g.pad[0]), x.shape[3] + sum(g.pad[1])
    if _is_channels_last(x):
        return blocks.scratch(name, (n, height, width, c), like=x).transpose(0, 3, 1, 2)
    return blocks.scratch(name, (n, c, height, width), like=x)


def _padded(x: Array, g: Windows, value: float | None = None) -> Array:
    """``x`` with a border of ``value``, or of the lowest value, which never wins."""
    if not any(map(any, g.pad)):
        return x
    if value is None:
        value = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    padded = _scratch("pool padded", x, g)
    padded[...] = value
    _inside(padded, x, g)[...] = x
    return padded


def _wins(padded: Array, g: Windows) -> Iterator[tuple[tuple[slice, ...], Array]]:
    """For each pixel of the window: its places for all windows, and the windows in which it won."""
    windows = list(_windows_of(g))
    best = padded[windows[0]].copy("K")
    for window in windows[1:]:
        np.maximum(best, padded[window], out=best)
    if not blocks.lowest(best) > -np.inf:  # NaN, or minus infinity, the value of the padding
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


def _winners(padded: Array, g: Windows) -> Array:
    """The number of the pixel that won each window, row by row; if all are -inf, the first that is not padding."""
    slot = np.int16 if g.kernel[0] * g.kernel[1] < 2**15 else np.int32
    (top, bottom), (left, right) = g.pad
    image = np.zeros_like(padded, shape=padded.shape[2:], dtype=bool, order="C")
    image[top : image.shape[0] - bottom, left : image.shape[1] - right] = True
    best = slots = found = None
    for index, window in enumerate(_windows_of(g)):
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
