"""Losses: cross entropy, negative log-likelihood and mean squared error; forward and backward pairs.

Scores have shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``. The functions work on rows of C, one for each of M
targets.
"""

import math

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.fast import blocks
from cnn_lightning.ops.fast.special import precise
from cnn_lightning.ops.types import Array


def cross_entropy(
    logits: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    check_target: bool = True,
) -> Array:
    """`ops.loss.cross_entropy`."""
    expect.cross_entropy(logits, target, weight, ignore_index, reduction, label_smoothing, check_target)
    rows = _shifted(_rows(logits))
    with np.errstate(divide="ignore", invalid="ignore"):
        if target.shape != logits.shape and not label_smoothing > 0:
            classes, valid, factor = _classes(logits, target, weight, ignore_index)
            picked = _picked(rows, classes)
            losses = -(factor * (picked - np.log(_sum(precise(np.exp, rows, out=rows)))))
        else:
            a, valid, factor = _soft(logits, target, weight, ignore_index, label_smoothing)
            np.subtract(np.log(_sum(precise(np.exp, rows)))[:, None], rows, out=rows, casting="same_kind")
            losses = _sum(a * rows)
        return _reduced(losses, valid, factor, reduction, logits)


def cross_entropy_backward(
    grad_y: Array,
    logits: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Array:
    """`ops.loss.cross_entropy_backward`."""
    rows = _shifted(_rows(logits))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        precise(np.exp, rows, out=rows)
        np.divide(rows, _sum(rows)[:, None], out=rows, casting="same_kind")
        if target.shape != logits.shape and not label_smoothing > 0:
            classes, valid, factor = _classes(logits, target, weight, ignore_index)
            scale = _grad_losses(grad_y, valid, factor, reduction) * factor
            np.multiply(rows, scale[:, None], out=rows)
            rows[np.arange(rows.shape[0], like=rows), classes] -= scale
        else:
            a, valid, factor = _soft(logits, target, weight, ignore_index, label_smoothing)
            grad = _grad_losses(grad_y, valid, factor, reduction)
            np.multiply(rows, (grad * a.sum(axis=1))[:, None], out=rows)
            np.subtract(rows, grad[:, None] * a, out=rows)
    return _unrows(rows, logits)


def cross_entropy_backward_target(
    grad_y: Array,
    logits: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Array:
    """`ops.loss.cross_entropy_backward_target`."""
    rows = _shifted(_rows(logits))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        np.subtract(np.log(_sum(precise(np.exp, rows)))[:, None], rows, out=rows, casting="same_kind")
        _, valid, factor = _soft(logits, target, weight, ignore_index, label_smoothing)
        grad = _grad_losses(grad_y, valid, factor, reduction) * (1 - _smoothing(label_smoothing))
        np.multiply(rows, grad[:, None], out=rows)
        if weight is not None:
            np.multiply(rows, weight, out=rows)
    return _unrows(rows, target)


def nll_loss(
    log_probs: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    check_target: bool = True,
) -> Array:
    """`ops.loss.nll_loss`."""
    expect.nll_loss(log_probs, target, weight, ignore_index, reduction, check_target)
    classes, valid, factor = _classes(log_probs, target, weight, ignore_index)
    with np.errstate(divide="ignore", invalid="ignore"):
        losses = -factor * _picked(_rows(log_probs), classes)
        return _reduced(losses, valid, factor, reduction, log_probs)


def nll_loss_backward(
    grad_y: Array,
    log_probs: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Array:
    """`ops.loss.nll_loss_backward`."""
    classes, valid, factor = _classes(log_probs, target, weight, ignore_index)
    rows = np.zeros((classes.shape[0], expect.number_of_classes(log_probs)), dtype=log_probs.dtype, like=log_probs)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        grad = _grad_losses(grad_y, valid, factor, reduction)
        rows[np.arange(rows.shape[0], like=rows), classes] = 0 - grad * factor  # never -0
    return _unrows(rows, log_probs)


def mse_loss(x: Array, target: Array, *, reduction: str = "mean") -> Array:
    """`ops.loss.mse_loss`."""
    expect.reduction(reduction)
    expect.dtype("x", x)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        losses = np.subtract(x, target, out=blocks.empty_like(x))
        np.square(losses, out=losses)
        if reduction == "none":
            return losses
        total: Array = losses.sum(dtype=np.float64)
        return (total / x.size if reduction == "mean" else total).astype(x.dtype)


def mse_loss_backward(grad_y: Array, x: Array, target: Array, *, reduction: str = "mean") -> Array:
    """`ops.loss.mse_loss_backward`."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        grad_x = np.subtract(x, target, out=blocks.empty_like(x))
        scale = np.divide(2.0, x.size) if reduction == "mean" else 2.0
        np.multiply(grad_x, float(scale), out=grad_x)
        np.multiply(grad_x, grad_y, out=grad_x)
    return grad_x


# ---- scores as rows


def _rows(scores: Array) -> Array:
    """``(N, C, d1, ...)`` as ``(M, C)``, where M is 1 for scores of shape ``(C,)``."""
    rows = np.moveaxis(scores, 1, -1) if scores.ndim > 2 else scores
    return rows.reshape(expect.rows_of_losses(scores), expect.number_of_classes(scores))


def _unrows(rows: Array, scores: Array) -> Array:
    """Rows back in the shape and memory layout of ``scores``."""
    if scores.ndim <= 2:
        return rows.reshape(scores.shape)
    result = blocks.empty_like(scores)
    np.copyto(result, np.moveaxis(rows.reshape(*expect.shape_of_losses(scores), scores.shape[1]), -1, 1))
    return result


def _shifted(rows: Array) -> Array:
    """A new array: the rows minus their maximum, so that no exponential overflows."""
    if rows.shape[1] == 0:
        return np.empty_like(rows)
    with np.errstate(invalid="ignore"):
        shifted: Array = rows - rows.max(axis=1, keepdims=True)
    return shifted


def _sum(rows: Array) -> Array:
    """The sum of each row, in float64 for any dtype of the rows."""
    total: Array = rows.sum(axis=1, dtype=np.float64)
    return total


def _picked(rows: Array, classes: Array) -> Array:
    return rows[np.arange(rows.shape[0], like=rows), classes]


# ---- targets


def _classes(scores: Array, target: Array, weight: Array | None, ignore_index: int) -> tuple[Array, Array, Array]:
    """For each row: its class (0 if ignored), whether it counts, and its factor (0 if ignored)."""
    flat = target.reshape(math.prod(target.shape))
    valid = flat != ignore_index
    classes = np.where(valid, flat, 0)
    factor = valid.astype(scores.dtype)
    if weight is not None:
        factor = np.where(valid, weight[classes], factor)
    return classes, valid, factor


def _smoothing(label_smoothing: float) -> float:
    """As in torch, 0 if it is negative or NaN."""
    return label_smoothing if label_smoothing > 0 else 0.0


def _soft(
    logits: Array, target: Array, weight: Array | None, ignore_index: int, label_smoothing: float
) -> tuple[Array, Array, Array]:
    """For each row: its ``a`` of `cross_entropy`, whether it counts, and its summand in the divisor of the mean."""
    smoothing = _smoothing(label_smoothing)
    if target.shape == logits.shape:
        a = _rows(target) * (1 - smoothing) + smoothing / max(1, expect.number_of_classes(logits))
        if weight is not None:
            a = a * weight
        ones = np.ones_like(logits, shape=(a.shape[0],))
        return a, ones != 0, ones
    classes, valid, factor = _classes(logits, target, weight, ignore_index)
    number = expect.number_of_classes(logits)
    a = np.full_like(logits, smoothing / max(1, number), shape=(classes.shape[0], number), order="C")
    if weight is not None:
        a *= weight
    a[np.arange(a.shape[0], like=a), classes] += factor * (1 - smoothing)
    return a, valid, factor


# ---- reduction


def _reduced(losses: Array, valid: Array, factor: Array, reduction: str, scores: Array) -> Array:
    losses = np.where(valid, losses, 0)  # not a product: an ignored row may be infinity
    if reduction == "none":
        return losses.reshape(expect.shape_of_losses(scores)).astype(scores.dtype, copy=False)
    total: Array = losses.sum(dtype=np.float64)
    if reduction == "mean":
        divisor = factor.sum(dtype=np.float64)
        total = np.where(divisor == 0, math.nan, total / divisor)  # also if smoothing makes the total other than 0
    return total.astype(scores.dtype)


def _grad_losses(grad_y: Array, valid: Array, factor: Array, reduction: str) -> Array:
    """The gradient of the loss of each row: 0 for ignored rows."""
    if reduction == "none":
        grad = grad_y.reshape(valid.shape)
    else:
        grad = np.broadcast_to(grad_y / factor.sum() if reduction == "mean" else grad_y, valid.shape)
    return np.where(valid, grad, 0)
