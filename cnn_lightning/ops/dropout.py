"""Dropout: a forward and backward pair. The mask is an argument, since random numbers are the caller's."""

from cnn_lightning.ops.types import Array


def dropout(x: Array, keep: Array, *, p: float) -> Array:
    """``y = x keep / (1 - p)``, and ``y = 0 x`` where p is 1.

    Args:
        x: Any shape.
        keep: 1 where an element stays, 0 where it goes, in a shape that broadcasts to that of ``x``: its own for
            Dropout, ``(N, C, 1, ...)`` for channels as a whole.
        p: The probability of a 0, between 0 and 1.
    """
    return x * (keep / (1 - p) if p < 1 else 0 * keep)


def dropout_backward(grad_y: Array, keep: Array, *, p: float) -> Array:
    """``grad_x = grad_y keep / (1 - p)``."""
    return dropout(grad_y, keep, p=p)
