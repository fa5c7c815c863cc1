"""Padding: borders of pixels of the image (reflect, replicate, circular) or of one number (constant).

Along each axis a border pixel is a copy of one pixel of the image, so that its gradient is added to that pixel. A
negative border cuts pixels off.
"""

from collections.abc import Sequence

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.expect import Mode
from cnn_lightning.ops.types import Array


def pad(x: Array, *, pad: Sequence[int], mode: Mode, value: float = 0.0) -> Array:
    """Put borders around the last axes of ``x``, or cut some off.

    Along one axis of ``n`` pixels: ``y[u] = x[s(u - left)]``. ``s`` is the identity on 0..n-1. Outside, it gives the
    mirror image without the edge (reflect: ``s(-1) = 1``), the edge (replicate: ``s(-1) = 0``) or the pixel from the
    other side (circular: ``s(-1) = n - 1``) of those that a negative border leaves. In the mode "constant", ``y[u]`` is
    ``value`` there.

    Args:
        x: Any shape with at least as many axes as ``pad`` has pairs.
        pad: Widths of the borders, the last axis first: (left, right, top, bottom, ...).
        mode: Which pixels the borders copy.
        value: Of borders in the mode "constant".

    Returns:
        ``x`` with each padded axis longer by its two widths.

    Raises:
        RuntimeError: A border is wider than the image has pixels for, or negative borders leave too few; or the dtype
            of ``x`` has no such ``value``.
        TypeError: A width is no integer, or ``value`` no number.
        ValueError: The mode is unknown.
    """
    value = expect.fill(x, value)
    for axis, left, right in expect.pad(x.shape, pad, mode):
        lines, sources = x.swapaxes(0, axis), _sources(x.shape[axis], left, right, mode)
        y = np.full_like(lines, value, shape=(len(sources), *lines.shape[1:]))
        for u, source in enumerate(sources):
            if source is not None:
                y[u] = lines[source]
        x = y.swapaxes(0, axis)
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
        for u, source in enumerate(_sources(n, left, right, mode)):
            if source is not None:
                grad[source] += lines[u]
        grad_y = grad.swapaxes(0, axis)
    return grad_y


def _sources(n: int, left: int, right: int, mode: Mode) -> list[int | None]:
    """``s(u - left)`` for each pixel ``u`` of a padded axis: the pixel of the image that it copies, if any."""
    places = range(-left, n + right)
    if mode == "constant":
        return [u if 0 <= u < n else None for u in places]
    if mode == "replicate":
        return [min(max(u, 0), n - 1) for u in places]
    if mode == "circular":
        first, last = max(0, -left), n + min(0, right)
        return [first + (u - first) % (last - first) for u in places]
    return [-u if u < 0 else 2 * (n - 1) - u if u >= n else u for u in places]
