"""Products of a small matrix and a long one, as convolutions of few channels have them.

OpenBLAS first copies both factors into an order of its own, which pays when each entry is used often. With a small
matrix of few entries it isn't, and OpenBLAS has kernels that skip the copying, for products of up to a million
multiplications. So a long product is cut into such pieces, which `numpy.matmul` takes as a stack, in one call.

GFLOP/s with 16,384 columns, one thread of a Xeon with AVX-512, whole -> in pieces::

    small matrix     A B          A^T G         B G^T
    16 x 10        51 -> 90      37 -> 68      29 -> 70
    32 x 28        74 -> 112     77 -> 121     58 -> 108
    16 x 145       74 -> 92      56 -> 81      71 -> 69
    32 x 145       92 -> 87      79 -> 75      83 -> 83     stays whole
"""

import numpy as np

from cnn_lightning.ops._types import Array

_MULTIPLICATIONS = 1_000_000
_LONGEST, _SHORTEST = 1024, 256


def times(a: Array, b: Array, out: Array) -> None:
    """``a @ b`` into ``out``: (m, k) and (k, n) to (m, n), for n much larger than m and k."""
    size, whole = _pieces(a.shape[0] * a.shape[1], b.shape[1])
    if whole:
        np.matmul(a, _stack(b, size, whole), out=_stack(out, size, whole))
    if whole < b.shape[1]:
        np.matmul(a, b[:, whole:], out=out[:, whole:])


def times_transposed(a: Array, b: Array) -> Array:
    """``a @ b.T``: (m, n) and (k, n) to (m, k), for n much larger than m and k."""
    size, whole = _pieces(len(a) * len(b), a.shape[1])
    total: Array
    if not whole:
        total = np.matmul(a, b.T)
        return total
    total = np.matmul(_stack(a, size, whole), _stack(b, size, whole).transpose(0, 2, 1)).sum(0)
    if whole < a.shape[1]:
        total += np.matmul(a[:, whole:], b[:, whole:].T)
    return total


def _pieces(entries: int, n: int) -> tuple[int, int]:
    """How long a piece is, and how much of ``n`` is cut into such: a power of two, and 0 where whole is faster."""
    size = _LONGEST
    while size >= _SHORTEST and size * entries > _MULTIPLICATIONS:
        size //= 2
    return size, n // size * size if size >= _SHORTEST and n >= 2 * size else 0


def _stack(a: Array, size: int, whole: int) -> Array:
    """The first ``whole`` columns of ``a`` (m, n) as matrices (whole / size, m, size)."""
    return a[:, :whole].reshape(len(a), whole // size, size).transpose(1, 0, 2)
