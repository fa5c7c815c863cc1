"""Local response normalisation: each value is divided by a power of the mean square of its neighbour channels."""

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.types import Array


def local_response_norm(x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Array:
    """``y_c = x_c / b_c^beta`` with ``b_c = k + alpha / size * sum_j x_j^2``.

    The sum is over ``size`` channels from ``c - size // 2`` on; channels that do not exist count as 0.

    Args:
        x: (N, C, ...).
        size: The number of channels.
        alpha: Factor of the mean square.
        beta: The power.
        k: Added to the mean square.

    Raises:
        TypeError: ``size`` is not an integer.
        NotImplementedError: ``x`` is not of floating numbers.
        RuntimeError: ``size`` is less than 1, or ``x`` has fewer than two axes.
    """
    expect.response(x, size)
    return (x / _base(x, size, alpha, k) ** beta).astype(x.dtype)


def local_response_norm_backward(
    grad_y: Array, x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Array:
    """``grad_x_c = g_c / b_c^beta - 2 alpha beta / size * x_c * sum_j g_j x_j / b_j^(beta + 1)``.

    The sum is over the channels whose own sum has channel c: ``size`` of them, up to ``c + size // 2``.
    """
    expect.response(x, size)
    base = _base(x, size, alpha, k)
    divided = grad_y / base**beta
    grad_square = -alpha * beta / size * _window(divided * x / base, (size - 1) // 2, size // 2)
    return (divided + 2 * x * grad_square).astype(x.dtype)


def _base(x: Array, size: int, alpha: float, k: float) -> Array:
    """``b``, in float64."""
    return k + alpha / size * _window(x.astype(np.float64) ** 2, size // 2, (size - 1) // 2)


def _window(values: Array, before: int, after: int) -> Array:
    """The sum over so many channels before and after each channel, and itself."""
    total, channels = np.zeros_like(values), values.shape[1]
    for offset in range(max(-before, 1 - channels), min(after, channels - 1) + 1):
        first, end = max(0, -offset), channels - max(0, offset)
        total[:, first:end] += values[:, first + offset : end + offset]
    return total
