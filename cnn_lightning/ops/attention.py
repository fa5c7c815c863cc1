"""Attention: each query takes a weighted mean of the values, with more weight where its key is more like the query."""

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.dropout import dropout, dropout_backward
from cnn_lightning.ops.softmax import softmax, softmax_backward
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
    """``a = softmax(scale q k^T + mask)``, ``y = dropout(a) v``, for each of the leading axes by itself.

    Args:
        q: Queries (..., L, E).
        k: Keys (..., S, E).
        v: Values (..., S, V).
        mask: Numbers to add to the scores, or booleans: True where a query may look. Broadcasts to (..., L, S).
        keep: 1 for a weight to keep, 0 for one to drop (..., L, S); None drops none.
        scale: ``1 / sqrt(E)`` if it is None.
        is_causal: Whether query l may look at keys 0..l alone, in place of ``mask``.
        p: The probability with which ``keep`` was drawn as 0.
        safe: Whether a query that may look nowhere gets 0 instead of NaN.

    Returns:
        ``y`` (..., L, V) and the weights ``a`` (..., L, S), before dropout.

    Raises:
        RuntimeError: Shapes or dtypes do not match, or there are both a mask and ``is_causal``.
    """
    factor = expect.attention(q, k, v, mask, scale, is_causal)
    scores = _masked((q * factor) @ k.swapaxes(-1, -2), mask, is_causal)
    weights = softmax(scores, dim=-1)
    if safe:
        weights = np.where((scores == -np.inf).all(-1, keepdims=True), 0, weights)
    return (weights if keep is None else dropout(weights, keep, p=p)) @ v, weights


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
) -> tuple[Array, Array, Array, Array]:
    """Gradients of `scaled_dot_product_attention`, from its second output, the weights ``a``.

    ``grad_v = dropout(a)^T grad_y``, ``grad_a = dropout_backward(grad_y v^T) + grad_weights``, and with the gradient
    ``s`` of the scores, which is that of the softmax: ``grad_q = scale s k``, ``grad_k = scale s^T q``.

    Returns:
        ``(grad_q, grad_k, grad_v, s)``; ``s`` is also the gradient of a mask of the shape (..., L, S).
    """
    factor = expect.attention(q, k, v, None, scale, False)
    grad_a = grad_y @ v.swapaxes(-1, -2)
    kept = weights
    if keep is not None:
        grad_a, kept = dropout_backward(grad_a, keep, p=p), dropout(weights, keep, p=p)
    if grad_weights is not None:
        grad_a = grad_a + grad_weights
    s = softmax_backward(grad_a, weights, dim=-1)
    return factor * (s @ k), factor * (s.swapaxes(-1, -2) @ q), kept.swapaxes(-1, -2) @ grad_y, s


def _masked(scores: Array, mask: Array | None, is_causal: bool) -> Array:
    """The scores, with ``-inf`` where a query may not look."""
    if is_causal:
        length, keys = scores.shape[-2:]
        mask = np.arange(keys, like=scores) <= np.arange(length, like=scores)[:, None]
    if mask is None:
        return scores
    return np.where(mask, scores, -np.inf).astype(scores.dtype) if mask.dtype.kind == "b" else scores + mask
