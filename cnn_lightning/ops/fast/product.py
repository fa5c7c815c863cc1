"""Products of matrices: large ones are shared among threads by rows, or by matrices of the stack."""

from math import prod

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.fast import blocks, tuning
from cnn_lightning.ops.types import Array


def product(a: Array, b: Array) -> Array:
    """`ops.product.product`."""
    expect.product(a, b)
    return _product(a, b)


def add_product(c: Array, a: Array, b: Array, *, beta: float = 1, alpha: float = 1) -> Array:
    """`ops.product.add_product`."""
    expect.add_product(c, a, b)
    y = _product(a, b)
    if alpha != 1:
        y *= alpha
    if beta != 0:
        y += c if beta == 1 else beta * c
    return y


def _product(a: Array, b: Array) -> Array:
    y = blocks.empty((*a.shape[:-1], b.shape[-1]), like=a)
    count = 2 if prod(a.shape) * b.shape[-1] >= tuning.TUNING.product_threads else 1

    def part(rows: slice) -> None:
        np.matmul(a[rows], b[rows] if b.ndim > 2 else b, out=y[rows])

    blocks.run(part, blocks.cut(len(a), count, even=count > 1))
    return y
