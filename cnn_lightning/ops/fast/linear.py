"""Linear: a weighted sum of all features for every output."""

from collections.abc import Sequence
from math import prod

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.fast import blocks
from cnn_lightning.ops.types import Array


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """`ops.linear.linear`."""
    expect.linear(x, weight, bias)
    rows = x.reshape(_count(x), x.shape[-1])
    y = blocks.empty((rows.shape[0], weight.shape[0]), like=x)
    with blocks.one_blas_thread():
        np.matmul(rows, weight.T, out=y)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[0])


def linear_backward(
    grad_y: Array, x: Array, weight: Array, *, needs: Sequence[bool] = (True, True, True)
) -> tuple[Array | None, Array | None, Array | None]:
    """`ops.linear.linear_backward`."""
    upstream = grad_y.reshape(_count(grad_y), grad_y.shape[-1])
    grad_x = grad_weight = grad_bias = None
    with blocks.one_blas_thread():
        if needs[0]:
            grad_x = blocks.empty((upstream.shape[0], x.shape[-1]), like=x)
            np.matmul(upstream, weight, out=grad_x)
            grad_x = grad_x.reshape(x.shape)
        if needs[1]:
            grad_weight = blocks.empty(weight.shape, like=weight)
            np.matmul(upstream.T, x.reshape(_count(x), x.shape[-1]), out=grad_weight)
    if needs[2]:
        # NumPy adds rows one after the other: in float64, because thousands of additions in float32 lose digits.
        grad_bias = upstream.sum(0, dtype=np.float64).astype(upstream.dtype)
    return grad_x, grad_weight, grad_bias


def _count(x: Array) -> int:
    """The number of rows; `reshape` can't infer it by -1 for an empty array."""
    return prod(x.shape[:-1])
