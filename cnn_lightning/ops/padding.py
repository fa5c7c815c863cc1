"""Padding with the image's own pixels: mirrored, repeated or wrapped around.

Along each axis a border pixel is a copy of one pixel of the image, so that its gradient goes back to that pixel.
"""

from collections.abc import Sequence

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.expect import Mode
from cnn_lightning.ops.types import Array


def pad(x: Array, *, pad: Sequence[int], mode: Mode) -> Array:
    """Put borders around the last axes of ``x``.

    Along one axis of ``n`` pixels: ``y[u] = x[s(u - left)]``, where ``s`` leaves 0..n-1 as they are and takes what lies
    outside to the mirror image without the edge (reflect: ``s(-1) = 1``), to the edge (replicate: ``s(-1) = 0``) or to
    the other side (circular: ``s(-1) = n - 1``).

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
    for axis, left, right in expect.pad(x.shape, pad, mode):
        n = x.shape[axis]
        lines = x.swapaxes(0, axis)
        x = np.stack([lines[_source(u - left, n, mode)] for u in range(left + n + right)]).swapaxes(0, axis)
    return x


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
    for axis, left, right in reversed(expect.pad(x.shape, pad, mode)):
        n, lines = x.shape[axis], grad_y.swapaxes(0, axis)
        grad = np.zeros_like(lines, shape=(n, *lines.shape[1:]))
        for u in range(left + n + right):
            grad[_source(u - left, n, mode)] += lines[u]
        grad_y = grad.swapaxes(0, axis)
    return grad_y


def _source(u: int, n: int, mode: Mode) -> int:
    """``s(u)``: the pixel of the image that stands at place ``u``, which may lie outside."""
    if mode == "replicate":
        return min(max(u, 0), n - 1)
    if mode == "circular":
        return u % n
    return -u if u < 0 else 2 * (n - 1) - u if u >= n else u
