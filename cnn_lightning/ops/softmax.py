"""Softmax and its logarithm along one dimension: forward and backward pairs.

The maximum is subtracted first, so that no exponential overflows. As in torch, the result is NaN for a slice with NaN
or +inf, and for one of -inf only. All is computed in float64 and rounded once, to the dtype of ``x``.
"""

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.types import Array


def softmax(x: Array, *, dim: int) -> Array:
    """``y_i = exp(x_i) / sum_j exp(x_j)`` along ``dim``.

    Raises:
        IndexError: ``x`` has no dimension ``dim``.
        NotImplementedError: ``x`` is not floating.
    """
    expect.softmax("softmax", x, dim)
    e = np.exp(_shifted(x, dim))
    return (e / _sum(e, dim)).astype(x.dtype).reshape(x.shape)


def softmax_backward(grad_y: Array, y: Array, *, dim: int) -> Array:
    """``grad_x = y (grad_y - sum_j y_j grad_y_j)``, from the output ``y`` of the forward."""
    g = grad_y.astype(np.float64)
    return (y * (g - _sum(y * g, dim))).astype(y.dtype).reshape(y.shape)


def log_softmax(x: Array, *, dim: int) -> Array:
    """``y_i = x_i - log sum_j exp(x_j)`` along ``dim``; errors as for `softmax`."""
    expect.softmax("log_softmax", x, dim)
    shifted = _shifted(x, dim)
    return (shifted - np.log(_sum(np.exp(shifted), dim))).astype(x.dtype).reshape(x.shape)


def log_softmax_backward(grad_y: Array, y: Array, *, dim: int) -> Array:
    """``grad_x = grad_y - exp(y) sum_j grad_y_j``, from the output ``y`` of the forward."""
    g = grad_y.astype(np.float64)
    return (g - np.exp(y.astype(np.float64)) * _sum(g, dim)).astype(y.dtype).reshape(y.shape)


def _shifted(x: Array, dim: int) -> Array:
    """``x`` minus its maximum along ``dim``, in float64; a scalar counts as a slice of one value."""
    wide = (x[None] if x.ndim == 0 else x).astype(np.float64)
    return wide - wide.max(axis=dim, keepdims=True) if wide.shape[dim] else wide


def _sum(x: Array, dim: int) -> Array:
    """The sum along ``dim``, which becomes an axis of length 1; a scalar is its own sum."""
    return x if x.ndim == 0 else x.sum(axis=dim, keepdims=True)
