"""Padding: borders of pixels of the image (reflect, replicate, circular) or of one number (constant).

Every border is a copy of a strip of the image, so that the gradient of the border is added to that strip.
"""

from collections.abc import Sequence

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.expect import Mode
from cnn_lightning.ops.types import Array


def pad(x: Array, *, pad: Sequence[int], mode: Mode, value: float = 0.0) -> Array:
    """`ops.padding.pad`."""
    value = expect.fill(x, value)
    axes = expect.pad(x.shape, pad, mode)
    if min(pad, default=0) < 0:
        return _cut(x, pad, mode, value)
    shape, inside = _inside(x.shape, axes)
    if mode == "constant":
        y = np.full_like(x, value, shape=shape)
        y[inside] = x
        return y
    y = np.empty_like(x, shape=shape)
    y[inside] = x
    for axis, left, _ in axes:
        lines = y.swapaxes(0, axis)
        for border, source in _borders(left, x.shape[axis], shape[axis], mode):
            lines[border] = lines[source]
    return y


def pad_backward(grad_y: Array, x: Array, *, pad: Sequence[int], mode: Mode) -> Array:
    """`ops.padding.pad_backward`."""
    axes = expect.pad(x.shape, pad, mode)
    if min(pad, default=0) < 0:
        return _cut_backward(grad_y, x, pad, mode)
    _, inside = _inside(x.shape, axes)
    grad_x = np.empty_like(x)
    if mode == "constant":
        grad_x[...] = grad_y[inside]
        return grad_x
    grad = grad_y.copy()
    for axis, left, _ in reversed(axes):
        lines = grad.swapaxes(0, axis)
        for border, source in _borders(left, x.shape[axis], grad.shape[axis], mode):
            added = lines[border]
            lines[source] += added.sum(0, keepdims=True) if mode == "replicate" else added
    grad_x[...] = grad[inside]
    return grad_x


def _inside(shape: Sequence[int], axes: list[tuple[int, int, int]]) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """The shape with borders, and where the image is in it."""
    padded, inside = list(shape), [slice(None)] * len(shape)
    for axis, left, right in axes:
        padded[axis] += left + right
        inside[axis] = slice(left, left + shape[axis])
    return tuple(padded), tuple(inside)


# ---- negative borders: circular padding is of the pixels that they leave, any other is cut afterwards


def _cut(x: Array, widths: Sequence[int], mode: Mode, value: float) -> Array:
    first, borders = mode == "circular", [max(0, width) for width in widths]
    if first:
        x = x[_kept(x.shape, widths)]
    y = pad(x, pad=borders, mode=mode, value=value)
    return y if first else y[_kept(y.shape, widths)].copy("K")


def _cut_backward(grad_y: Array, x: Array, pad: Sequence[int], mode: Mode) -> Array:
    borders = [max(0, width) for width in pad]
    if mode == "circular":
        grad_x, kept = np.zeros_like(x), _kept(x.shape, pad)
        grad_x[kept] = pad_backward(grad_y, x[kept], pad=borders, mode=mode)
        return grad_x
    shape, _ = _inside(x.shape, expect.pad(x.shape, borders, mode))
    grad = np.zeros_like(grad_y, shape=shape)
    grad[_kept(shape, pad)] = grad_y
    return pad_backward(grad, x, pad=borders, mode=mode)


def _kept(shape: Sequence[int], pad: Sequence[int]) -> tuple[slice, ...]:
    """What negative widths leave of the shape."""
    kept = [slice(None)] * len(shape)
    for i in range(len(pad) // 2):
        axis = len(shape) - 1 - i
        kept[axis] = slice(max(0, -pad[2 * i]), shape[axis] + min(0, pad[2 * i + 1]))
    return tuple(kept)


def _borders(left: int, n: int, size: int, mode: Mode) -> list[tuple[slice, slice]]:
    """``(border, source)`` for both sides of a padded axis: the border, and the strip that it copies."""
    end, right = left + n, size - left - n
    before, after = slice(0, left), slice(end, size)
    if mode == "replicate":
        sources = slice(left, left + 1), slice(end - 1, end)
    elif mode == "circular":
        sources = slice(n, n + left), slice(left, left + right)
    else:
        # In reverse order. A stop below 0 would count from the end, so that it is None.
        stop = end - 2 - right
        sources = slice(2 * left, left, -1), slice(end - 2, None if stop < 0 else stop, -1)
    return [
        (border, source) for border, source in zip((before, after), sources, strict=True) if border.start < border.stop
    ]
