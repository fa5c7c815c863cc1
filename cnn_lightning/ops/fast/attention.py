"""Attention: the formula with fast products, softmax and dropout."""

from collections.abc import Sequence

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.fast import blocks
from cnn_lightning.ops.fast.dropout import dropout, dropout_backward
from cnn_lightning.ops.fast.softmax import softmax, softmax_backward
from cnn_lightning.ops.types import Array


def scaled_dot_product_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    keep: Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    p: float = 0.0,
    safe: bool = True,
) -> tuple[Array, Array]:
    """`ops.attention.scaled_dot_product_attention`."""
    factor = expect.attention(q, k, v, mask, scale, is_causal)
    with blocks.one_blas_thread(), np.errstate(invalid="ignore", over="ignore"):
        scores = _product(q * factor, k.swapaxes(-1, -2))
        _mask(scores, mask, is_causal)
        weights = softmax(scores, dim=-1)
        if safe and (mask is not None or not scores.shape[-1]):
            weights[(scores == -np.inf).all(-1)] = 0
        return _product(weights if keep is None else dropout(weights, keep, p=p), v), weights


def scaled_dot_product_attention_backward(
    grad_y: Array,
    q: Array,
    k: Array,
    v: Array,
    weights: Array,
    keep: Array | None = None,
    grad_weights: Array | None = None,
    *,
    scale: float | None = None,
    p: float = 0.0,
    needs: Sequence[bool] = (True, True, True, True),
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """`ops.attention.scaled_dot_product_attention_backward`."""
    factor = expect.attention(q, k, v, None, scale, False)
    grad_q = grad_k = grad_v = s = None
    with blocks.one_blas_thread(), np.errstate(invalid="ignore", over="ignore"):
        if needs[2]:
            kept = weights if keep is None else dropout(weights, keep, p=p)
            grad_v = _product(kept.swapaxes(-1, -2), grad_y)
        if needs[0] or needs[1] or needs[3]:
            grad_a = _product(grad_y, v.swapaxes(-1, -2))
            grad_a = grad_a if keep is None else dropout_backward(grad_a, keep, p=p)
            if grad_weights is not None:
                grad_a += grad_weights
            s = softmax_backward(grad_a, weights, dim=-1)
            grad_q = _scaled(_product(s, k), factor) if needs[0] else None
            grad_k = _scaled(_product(s.swapaxes(-1, -2), q), factor) if needs[1] else None
    return grad_q, grad_k, grad_v, s if needs[3] else None


def _product(a: Array, b: Array) -> Array:
    y = blocks.empty((*a.shape[:-1], b.shape[-1]), like=a)
    np.matmul(a, b, out=y)
    return y


def _scaled(x: Array, factor: float) -> Array:
    x *= factor
    return x


def _mask(scores: Array, mask: Array | None, is_causal: bool) -> None:
    """``-inf`` into the scores where a query may not look."""
    if is_causal:
        length, keys = scores.shape[-2:]
        mask = np.arange(keys) <= np.arange(length)[:, None]
    if mask is not None and mask.dtype.kind == "b":
        np.copyto(scores, -np.inf, where=np.logical_not(mask))
    elif mask is not None:
        scores += mask
