"""Padding with pixels of the image: reflect, replicate or circular.

Along each axis a border pixel is a copy of one pixel of the image, so that its gradient is added to that pixel.
"""

from collections.abc import Sequence

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.expect import Mode
from cnn_lightning.ops.types import Array


def pad(x: Array, *, pad: Sequence[int], mode: Mode) -> Array:
    """Put borders around the last axes of ``x``.

    Along one axis of ``n`` pixels: ``y[u] = x[s(u - left)]``. ``s`` is the identity on 0..n-1. Outside, it gives the
    mirror image without the edge (reflect: ``s(-1) = 1``), the edge (replicate: ``s(-1) = 0``) or the pixel from the
    other side (circular: ``s(-1) = n - 1``).

    Args:
        x: Any shape with at least as many axes as ``pad`` has pairs.
        pad: Widths of the borders, the last axis first: (left, right, top, bottom, ...).
        mode: Which pixels the borders copy.

    Returns:
        ``x`` with each padded axis longer by its two widths.

    Raises:
        RuntimeError: A border is negative, or wider than the image has pixels for.
        ValueError: The mode is unknown.
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
    """``s(u)``: the pixel of the image that is copied to position ``u``, which may be outside."""
    if mode == "replicate":
        return min(max(u, 0), n - 1)
    if mode == "circular":
        return u % n
    return -u if u < 0 else 2 * (n - 1) - u if u >= n else u
