"""Linear: a weighted sum of all features for every output."""

from math import prod

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.types import Array


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``y = x W^T + b``.

    Args:
        x: (..., I), any number of leading axes.
        weight: (O, I).
        bias: (O,) or None.

    Returns:
        (..., O).

    Raises:
        RuntimeError: The number of features does not match, or dtypes differ or are not floating.
    """
    expect.linear(x, weight, bias)
    y = (_rows(x) @ weight.T).reshape(*x.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias


def linear_backward(grad_y: Array, x: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Gradients of `linear`: ``grad_x = G W``, ``grad_weight = G^T x``, ``grad_bias = sum of G over the rows``.

    Args:
        grad_y: Upstream gradient ``G`` (..., O).
        x: The forward's input (..., I).
        weight: The forward's weight (O, I).

    Returns:
        ``(grad_x, grad_weight, grad_bias)``.
    """
    upstream = _rows(grad_y)
    grad_x = (upstream @ weight).reshape(x.shape)
    grad_weight = upstream.T @ _rows(x)
    return grad_x, grad_weight, upstream.sum(0, dtype=np.float64).astype(x.dtype)


def _rows(x: Array) -> Array:
    """(..., I) as (M, I)."""
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])
