"""Padding with pixels of the image: reflect, replicate or circular.

Every border is a copy of a strip of the image, so that the gradient of the border is added to that strip.
"""

from collections.abc import Sequence

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.expect import Mode
from cnn_lightning.ops.types import Array


def pad(x: Array, *, pad: Sequence[int], mode: Mode) -> Array:
    """`ops.padding.pad`."""
    axes = expect.pad(x.shape, pad, mode)
    shape, inside = list(x.shape), [slice(None)] * x.ndim
    for axis, left, right in axes:
        shape[axis] += left + right
        inside[axis] = slice(left, left + x.shape[axis])
    y = np.empty_like(x, shape=tuple(shape))
    y[tuple(inside)] = x
    for axis, left, _ in axes:
        lines = y.swapaxes(0, axis)
        for border, source in _borders(left, x.shape[axis], shape[axis], mode):
            lines[border] = lines[source]
    return y


def pad_backward(grad_y: Array, x: Array, *, pad: Sequence[int], mode: Mode) -> Array:
    """`ops.padding.pad_backward`."""
    axes = expect.pad(x.shape, pad, mode)
    grad = grad_y.copy()
    inside = [slice(None)] * x.ndim
    for axis, left, _ in reversed(axes):
        lines = grad.swapaxes(0, axis)
        for border, source in _borders(left, x.shape[axis], grad.shape[axis], mode):
            added = lines[border]
            lines[source] += added.sum(0, keepdims=True) if mode == "replicate" else added
        inside[axis] = slice(left, left + x.shape[axis])
    grad_x = np.empty_like(x)
    grad_x[...] = grad[tuple(inside)]
    return grad_x


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
