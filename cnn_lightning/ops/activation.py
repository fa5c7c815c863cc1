"""Elementwise activations: forward and backward pairs.

Shapes are free everywhere (``x`` and ``grad_y`` alike), results have the shape, dtype and memory layout of ``x``.
Values and gradients at kinks, infinities and NaN are torch's, and where torch's own vectorised and scalar code disagree
(the gradient at NaN), those of its scalar code, which its GPU code shares.
"""

from collections.abc import Callable

import numpy as np

from cnn_lightning.ops import _blocks
from cnn_lightning.ops._types import Array


def _blockwise(function: Callable[..., object], x: Array, *more: Array) -> Array:
    """``function(*blocks, out)`` for every block of the batch: the passes over a block find it in cache."""
    y = _blocks.empty_like(x)
    arrays = [array[None] if x.ndim == 0 else array for array in (x, *more, y)]
    parts = _blocks.blocks(arrays[0].shape[0], x.nbytes // max(1, arrays[0].shape[0]))
    _blocks.run(lambda part: function(*(array[part] for array in arrays)), parts, like=x)
    return y


def _zero(out: Array, where: Array, grad: Array) -> None:
    """``out = 0 where where else grad``, by the bits of ``grad``.

    A product with 0 and 1 is no substitute (infinity and NaN times 0 are NaN), and `np.where` takes eight times as long
    because it branches at every element. Uses ``where`` up.
    """
    bits = np.dtype(f"i{out.itemsize}")
    keep = where.view("i1")
    np.subtract(keep, 1, out=keep)
    mask = out.view(bits)
    np.copyto(mask, keep)
    np.bitwise_and(mask, grad.view(bits), out=mask)


def relu(x: Array) -> Array:
    """``y = max(x, 0)``; NaN stays NaN."""
    return _blockwise(lambda x, out: np.maximum(x, 0, out=out), x)


def relu_backward(grad_y: Array, x: Array) -> Array:
    """``grad_x = 0 where x <= 0 else grad_y``: it passes at NaN.

    ``x`` may also be the output, which has the same sign.
    """
    return _blockwise(lambda x, grad, out: _zero(out, x <= 0, grad), x, grad_y)
