"""Padding with the image's own pixels: mirrored, repeated or wrapped around.

Every border is a strip of the image put beside it, so that the gradient adds the border's gradient back to that strip.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from cnn_lightning.ops._types import Array

Mode = Literal["reflect", "replicate", "circular"]


def pad(x: Array, *, pad: Sequence[int], mode: Mode) -> Array:
    """Put borders around the last axes of ``x``.

    Forward, along one axis of ``n`` pixels: ``y[u] = x[s(u - left)]``, where ``s`` leaves 0..n-1 as they are and takes
    what lies outside to the mirror image without the edge (reflect: ``s(-1) = 1``), to the edge (replicate: ``s(-1) =
    0``) or to the other side (circular: ``s(-1) = n - 1``).

    Args:
        x: Any shape, at least as many axes as ``pad`` has pairs.
        pad: Widths of the borders, the last axis first: (left, right, top, bottom, ...).
        mode: Where the borders' pixels come from.

    Returns:
        ``x`` with its last axes longer by their two widths.

    Raises:
        RuntimeError: A border wider than the image gives pixels for, or a negative one.
        ValueError: An unknown mode.
    """
    axes = _axes(x.shape, pad, mode)
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
    """Gradient of `pad`: ``grad_x[i] = sum of grad_y[u] over all u with s(u - left) = i``.

    Args:
        grad_y: Upstream gradient, shaped as the output.
        x: The forward's input.
        pad: As in the forward.
        mode: As in the forward.

    Returns:
        ``grad_x``, shaped as ``x``.
    """
    axes = _axes(x.shape, pad, mode)
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
    """``(border, source)`` for both sides of a padded axis: where the border lies and which strip it repeats."""
    end, right = left + n, size - left - n
    before, after = slice(0, left), slice(end, size)
    if mode == "replicate":
        sources = slice(left, left + 1), slice(end - 1, end)
    elif mode == "circular":
        sources = slice(n, n + left), slice(left, left + right)
    else:
        # Backwards, and a stop below 0 would count from the end: None stands for it.
        stop = end - 2 - right
        sources = slice(2 * left, left, -1), slice(end - 2, None if stop < 0 else stop, -1)
    return [
        (border, source) for border, source in zip((before, after), sources, strict=True) if border.start < border.stop
    ]


def _axes(shape: Sequence[int], pad: Sequence[int], mode: Mode) -> list[tuple[int, int, int]]:
    """``(axis, left, right)`` for each axis that is padded, after the checks."""
    if mode not in ("reflect", "replicate", "circular"):
        raise ValueError(f"pad: mode: expected 'reflect', 'replicate' or 'circular', got {mode!r}")
    if len(pad) % 2 or len(pad) // 2 > len(shape):
        raise RuntimeError(f"pad: pad: expected two widths for each of at most {len(shape)} axes, got {tuple(pad)}")
    axes = [(len(shape) - 1 - i, pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)]
    for axis, left, right in axes:
        n = shape[axis]
        most = {"reflect": n - 1, "replicate": max(left, right) if n else 0, "circular": n}[mode]
        if min(left, right) < 0 or max(left, right) > most:
            raise RuntimeError(
                f"pad: pad: expected widths from 0 to {most} for {mode!r} on the {n} pixels of axis {axis}, "
                f"got {left} and {right}"
            )
    return axes
