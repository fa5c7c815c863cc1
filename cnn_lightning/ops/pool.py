"""Pooling: the largest or the mean value of every window, and the way of a gradient back to the pixels it came from."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cnn_lightning.ops import _blocks
from cnn_lightning.ops._types import Array

Pair = int | Sequence[int]


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
        slots = _winners(_padded(x[part], g), g)
        grad = _blocks.scratch("pool gradient", _padded_shape(x[part], g), like=x)
        grad[...] = 0
        for index, window in enumerate(g.windows()):
            grad[window] += np.where(slots == index, grad_y[part], x.dtype.type(0))
        (top, _), (left, _) = g.pad
        grad_x[part] = grad[:, :, top : top + x.shape[2], left : left + x.shape[3]]

    _blocks.run(block, _parts(x), like=x)
    return grad_x


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
    x: Array, kernel_size: Pair, stride: Pair | None, padding: Pair, dilation: Pair, ceil_mode: bool
) -> _Geometry:
    kernel, padding, dilation = (_pair(value) for value in (kernel_size, padding, dilation))
    step = kernel if stride is None else _pair(stride)
    if x.ndim != 4:
        raise RuntimeError(f"max_pool2d: x: expected 4 axes, got shape {tuple(x.shape)}")
    if any(p > k // 2 or p < 0 for p, k in zip(padding, kernel, strict=True)):
        raise RuntimeError(
            f"max_pool2d: padding: expected at most half the kernel {kernel} and not negative, got {padding}"
        )
    pads, sizes = [], []
    for n, k, s, p, d in zip(x.shape[2:], kernel, step, padding, dilation, strict=True):
        reach = n + 2 * p - d * (k - 1) - 1
        count = (-(-reach // s) if ceil_mode else reach // s) + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1  # a window that would begin beyond the image and its left padding
        if count < 1:
            raise RuntimeError(f"max_pool2d: x: expected an image of at least {d * (k - 1) + 1 - 2 * p}, got {n}")
        sizes.append(count)
        pads.append((p, max(0, (count - 1) * s + d * (k - 1) + 1 - n - p)))
    return _Geometry(kernel, step, dilation, (pads[0], pads[1]), (sizes[0], sizes[1]))


def _pair(value: Pair) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)


def _output(x: Array, g: _Geometry) -> Array:
    if x.shape[1] > 1 and x.strides[1] == x.itemsize:
        return _blocks.empty((x.shape[0], *g.size, x.shape[1]), like=x).transpose(0, 3, 1, 2)
    return _blocks.empty((*x.shape[:2], *g.size), like=x)


def _parts(x: Array) -> list[slice]:
    return _blocks.blocks(x.shape[0], 4 * x.shape[1] * x.shape[2] * x.shape[3] * x.itemsize)


def _padded_shape(x: Array, g: _Geometry) -> tuple[int, ...]:
    return (*x.shape[:2], x.shape[2] + sum(g.pad[0]), x.shape[3] + sum(g.pad[1]))


def _padded(x: Array, g: _Geometry) -> Array:
    if not any(map(any, g.pad)):
        return x
    (top, _), (left, _) = g.pad
    padded = _blocks.scratch("pool padded", _padded_shape(x, g), like=x)
    padded[...] = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    return padded


def _winners(padded: Array, g: _Geometry) -> Array:
    """Which pixel of its window won, counted row by row."""
    best = slots = None
    for index, window in enumerate(g.windows()):
        value = padded[window]
        if best is None or slots is None:
            best, slots = value.copy(), np.zeros_like(value, dtype=np.int16)
        else:
            won = (value > best) | np.isnan(value)
            np.copyto(best, value, where=won)
            np.copyto(slots, np.int16(index), where=won)
    assert slots is not None
    return slots
