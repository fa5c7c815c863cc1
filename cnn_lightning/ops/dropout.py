"""Dropout: a forward and backward pair. The mask is an argument, because the caller draws random numbers."""

from cnn_lightning.ops.types import Array


def dropout(x: Array, keep: Array, *, p: float) -> Array:
    """``y = x keep / (1 - p)``, and ``y = 0 x`` if p is 1.

    Args:
        x: Any shape.
        keep: 1 for an element to keep, 0 for one to drop, in a shape that broadcasts to that of ``x``: the shape of
            ``x`` for Dropout, ``(N, C, 1, ...)`` for whole channels.
        p: The probability of a 0, between 0 and 1.
    """
    return x * (keep / (1 - p) if p < 1 else 0 * keep)


def dropout_backward(grad_y: Array, keep: Array, *, p: float) -> Array:
    """``grad_x = grad_y keep / (1 - p)``."""
    return dropout(grad_y, keep, p=p)
