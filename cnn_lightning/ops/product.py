"""Products of matrices.

Their gradients are products of the same kind: ``grad_a = grad_y b^T`` and ``grad_b = a^T grad_y``.
"""

from cnn_lightning.ops import expect
from cnn_lightning.ops.types import Array


def product(a: Array, b: Array) -> Array:
    """``y[n, i, j] = sum_k a[n, i, k] b[n, k, j]``.

    Args:
        a: A matrix (I, K) or a stack of them (N, I, K).
        b: A matrix (K, J) or a stack (N, K, J).

    Returns:
        (I, J) or (N, I, J).

    Raises:
        RuntimeError: Shapes that don't match, or dtypes that differ or are not floating.
    """
    expect.product(a, b)
    return a @ b


def add_product(c: Array, a: Array, b: Array, *, beta: float = 1, alpha: float = 1) -> Array:
    """``y = beta c + alpha (a @ b)``. If ``beta`` is 0, ``c`` is not read: NaN and infinity in it do not count.

    Args:
        c: Any shape that broadcasts to that of the product.
        a: As in `product`.
        b: As in `product`.
        beta: Factor of ``c``.
        alpha: Factor of the product.

    Returns:
        (I, J) or (N, I, J).

    Raises:
        RuntimeError: As `product`; also if ``c`` does not broadcast to the product.
    """
    expect.add_product(c, a, b)
    y = a @ b if alpha == 1 else alpha * (a @ b)
    return y if beta == 0 else y + c if beta == 1 else y + beta * c
