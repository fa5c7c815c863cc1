"""Matrix products for convolution: a small matrix by a long one, or a large one by few columns.

OpenBLAS first copies both factors into its own order, which pays if each entry is used often. For a small matrix it
does not pay, and OpenBLAS has kernels that do not copy, for products of up to a million multiplications. Therefore a
long product is cut into pieces of that size, which are a stack of matrices for one call of `numpy.matmul`.

GFLOP/s with 16,384 columns, one thread of a Xeon with AVX-512, whole -> in pieces::

    small matrix     A B          A^T G         B G^T
    16 x 10        51 -> 90      37 -> 68      29 -> 70
    32 x 28        74 -> 112     77 -> 121     58 -> 108
    16 x 145       74 -> 92      56 -> 81      71 -> 69
    32 x 145       92 -> 87      79 -> 75      83 -> 83     stays whole
"""

import numpy as np

from cnn_lightning.ops.fast import blocks, tuning
from cnn_lightning.ops.types import Array


def times(a: Array, b: Array, out: Array) -> None:
    """``a @ b`` into ``out``: (m, k) and (k, n) to (m, n).

    Args:
        a: The small matrix, or the large one.
        b: The long matrix, or the one of few columns.
        out: The result.
    """
    size, whole = _pieces(a.size, b.shape[1])
    if whole:
        np.matmul(a, _stack(b, size, whole), out=_stack(out, size, whole))
    if whole < b.shape[1]:
        np.matmul(a, b[:, whole:], out=out[:, whole:])


def times_groups(matrices: Array, columns: Array, out: Array) -> None:
    """`times` for each group: (groups, m, k) and (groups, k, n) to (groups, m, n)."""
    if len(matrices) == 1:
        times(matrices[0], columns[0], out[0])
    else:
        np.matmul(matrices, columns, out=out)


def times_transposed(a: Array, b: Array) -> Array:
    """``a @ b.T``: (m, n) and (k, n) to (m, k)."""
    size, whole = _pieces(len(a) * len(b), a.shape[1])
    total = blocks.empty((len(a), len(b)), like=a)
    if not whole:
        np.matmul(a, b.T, out=total)
        return total
    np.matmul(_stack(a, size, whole), _stack(b, size, whole).transpose(0, 2, 1)).sum(0, out=total)
    if whole < a.shape[1]:
        total += np.matmul(a[:, whole:], b[:, whole:].T)
    return total


def _pieces(entries: int, n: int) -> tuple[int, int]:
    """The length of a piece (a power of two), and how much of ``n`` to cut into pieces: 0 if the whole is faster."""
    numbers = tuning.TUNING
    size, shortest = numbers.product_longest, numbers.product_shortest
    while size >= shortest and size * entries > numbers.product_multiplications:
        size //= 2
    return size, n // size * size if size >= shortest and n >= 2 * size else 0


def _stack(a: Array, size: int, whole: int) -> Array:
    """The first ``whole`` columns of ``a`` (m, n) as matrices (whole / size, m, size)."""
    return a[:, :whole].reshape(len(a), whole // size, size).transpose(1, 0, 2)
