"""Dropout: a forward and backward pair. The mask is an argument, because the caller draws random numbers."""

import numpy as np

from cnn_lightning.ops.fast import blocks
from cnn_lightning.ops.types import Array


def dropout(x: Array, keep: Array, *, p: float) -> Array:
    """`ops.dropout.dropout`."""
    y = blocks.empty_like(x)
    with np.errstate(invalid="ignore", over="ignore"):
        np.multiply(x, keep / (1 - p) if p < 1 else 0 * keep, out=y)
    return y


def dropout_backward(grad_y: Array, keep: Array, *, p: float) -> Array:
    """`ops.dropout.dropout_backward`."""
    return dropout(grad_y, keep, p=p)
