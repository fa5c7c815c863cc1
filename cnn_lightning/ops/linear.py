"""Linear: a weighted sum of all features for every output."""

from collections.abc import Sequence
from math import prod

import numpy as np

from cnn_lightning.ops import _blocks
from cnn_lightning.ops._types import Array


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``y = x W^T + b``.

    Args:
        x: (..., I), any number of leading axes.
        weight: (O, I).
        bias: (O,) or None.

    Returns:
        (..., O).

    Raises:
        RuntimeError: Features that don't match, dtypes that differ or are not floating.
    """
    _check(x, weight, bias)
    rows = x.reshape(_count(x), x.shape[-1])
    y = _blocks.empty((rows.shape[0], weight.shape[0]), like=x)
    with _blocks.one_blas_thread():
        np.matmul(rows, weight.T, out=y)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[0])


def linear_backward(
    grad_y: Array, x: Array, weight: Array, *, needs: Sequence[bool] = (True, True, True)
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of `linear`: ``grad_x = G W``, ``grad_weight = G^T x``, ``grad_bias = sum of G over the rows``.

    Args:
        grad_y: Upstream gradient ``G`` (..., O).
        x: The forward's input (..., I).
        weight: The forward's weight (O, I).
        needs: Which of the three gradients are wanted.

    Returns:
        ``(grad_x, grad_weight, grad_bias)``, None for what is not needed.
    """
    upstream = grad_y.reshape(_count(grad_y), grad_y.shape[-1])
    grad_x = grad_weight = grad_bias = None
    with _blocks.one_blas_thread():
        if needs[0]:
            grad_x = _blocks.empty((upstream.shape[0], x.shape[-1]), like=x)
            np.matmul(upstream, weight, out=grad_x)
            grad_x = grad_x.reshape(x.shape)
        if needs[1]:
            grad_weight = _blocks.empty(weight.shape, like=weight)
            np.matmul(upstream.T, x.reshape(_count(x), x.shape[-1]), out=grad_weight)
    if needs[2]:
        # NumPy adds rows one after the other: float64 keeps the rounding of thousands of additions out of float32.
        grad_bias = upstream.sum(0, dtype=np.float64).astype(upstream.dtype)
    return grad_x, grad_weight, grad_bias


def _count(x: Array) -> int:
    """The number of rows; said outright, as -1 can't be inferred of an empty array."""
    return prod(x.shape[:-1])


def _check(x: Array, weight: Array, bias: Array | None) -> None:
    if weight.ndim != 2:
        raise RuntimeError(f"linear: weight: expected 2 axes, got shape {tuple(weight.shape)}")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"linear: x: expected {weight.shape[1]} features, got shape {tuple(x.shape)}")
    if bias is not None and bias.shape != (weight.shape[0],):
        raise RuntimeError(f"linear: bias: expected shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, array in (("x", x), ("weight", weight), ("bias", bias)):
        if array is not None and (array.dtype.kind != "f" or array.dtype != x.dtype):
            wanted = "a floating dtype" if array.dtype.kind != "f" else f"x's dtype {x.dtype}"
            raise RuntimeError(f"linear: {name}: expected {wanted}, got {array.dtype}")
