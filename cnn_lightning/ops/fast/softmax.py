"""Softmax and its logarithm along one dimension: forward and backward pairs.

The maximum is subtracted first, so that no exponential overflows. As in torch, the result is NaN for a slice with NaN
or +inf, and for one of -inf only. Results have the shape and dtype of ``x`` and are contiguous, as in torch.
"""

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.fast import blocks
from cnn_lightning.ops.fast.special import precise
from cnn_lightning.ops.types import Array


def softmax(x: Array, *, dim: int) -> Array:
    """`ops.softmax.softmax`."""
    y = _shifted("softmax", x, dim)
    view = _with_axis(y)
    precise(np.exp, view, out=view)
    with np.errstate(invalid="ignore"):
        np.divide(view, _sum(view, dim), out=view, casting="same_kind")
    return y


def softmax_backward(grad_y: Array, y: Array, *, dim: int) -> Array:
    """`ops.softmax.softmax_backward`."""
    grad_x = blocks.empty(y.shape, like=y)
    grad_y, y, view = _with_axis(grad_y), _with_axis(y), _with_axis(grad_x)
    with np.errstate(invalid="ignore", over="ignore"):
        np.multiply(y, grad_y, out=view)
        np.subtract(grad_y, _sum(view, dim), out=view, casting="same_kind")
        np.multiply(view, y, out=view)
    return grad_x


def log_softmax(x: Array, *, dim: int) -> Array:
    """`ops.softmax.log_softmax`."""
    y = _shifted("log_softmax", x, dim)
    view = _with_axis(y)
    with np.errstate(divide="ignore"):
        np.subtract(view, np.log(_sum(precise(np.exp, view), dim)), out=view, casting="same_kind")
    return y


def log_softmax_backward(grad_y: Array, y: Array, *, dim: int) -> Array:
    """`ops.softmax.log_softmax_backward`."""
    grad_x = blocks.empty(y.shape, like=y)
    grad_y, y, view = _with_axis(grad_y), _with_axis(y), _with_axis(grad_x)
    with np.errstate(invalid="ignore", over="ignore"):
        precise(np.exp, y, out=view)
        np.multiply(view, _sum(grad_y, dim), out=view, casting="same_kind")
        np.subtract(grad_y, view, out=view)
    return grad_x


def _with_axis(x: Array) -> Array:
    """A view with at least one dimension: for torch a scalar has one of length 1."""
    return x[None] if x.ndim == 0 else x


def _sum(x: Array, dim: int) -> Array:
    """The sum along ``dim``, which becomes an axis of length 1, in float64 for any dtype of ``x``."""
    total: Array = x.sum(axis=dim, keepdims=True, dtype=np.float64)
    return total


def _shifted(name: str, x: Array, dim: int) -> Array:
    """A new array: ``x`` minus its maximum along ``dim``."""
    expect.softmax(name, x, dim)
    y = blocks.empty(x.shape, like=x)
    wide = _with_axis(x)
    if wide.shape[dim]:
        with np.errstate(invalid="ignore"):
            np.subtract(wide, wide.max(axis=dim, keepdims=True), out=_with_axis(y))
    return y
