"""Losses: forward and backward pairs.

Those of classes: scores have shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``. The functions work on rows of C, one
for each of M targets. Those of numbers have one loss for each element of ``x``.
"""

import math

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.fast import blocks
from cnn_lightning.ops.fast.activation import logsigmoid, sigmoid
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
        return _mean_or_sum(np.square(losses, out=losses), reduction)


def mse_loss_backward(grad_y: Array, x: Array, target: Array, *, reduction: str = "mean") -> Array:
    """`ops.loss.mse_loss_backward`."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        grad_x = np.subtract(x, target, out=blocks.empty_like(x))
        scale = np.divide(2.0, x.size) if reduction == "mean" else 2.0
        np.multiply(grad_x, float(scale), out=grad_x)
        np.multiply(grad_x, grad_y, out=grad_x)
    return grad_x


def l1_loss(x: Array, target: Array, *, reduction: str = "mean") -> Array:
    """`ops.loss.l1_loss`."""
    expect.l1_loss(x, reduction)
    with np.errstate(all="ignore"):
        losses = np.subtract(x, target, out=blocks.empty_like(x))
        return _mean_or_sum(np.abs(losses, out=losses), reduction)


def l1_loss_backward(grad_y: Array, x: Array, target: Array, *, reduction: str = "mean") -> Array:
    """`ops.loss.l1_loss_backward`."""
    with np.errstate(all="ignore"):
        grad_x = np.subtract(x, target, out=blocks.empty_like(x))
        np.subtract(grad_x > 0, grad_x < 0, out=grad_x, dtype=x.dtype)
        return np.multiply(grad_x, _of_each(grad_y, x, reduction), out=grad_x)


def smooth_l1_loss(x: Array, target: Array, *, reduction: str = "mean", beta: float = 1.0) -> Array:
    """`ops.loss.smooth_l1_loss`."""
    expect.smooth_l1_loss(x, reduction, beta)
    if beta == 0:
        return l1_loss(x, target, reduction=reduction)
    with np.errstate(all="ignore"):
        d = np.subtract(x, target, out=blocks.empty_like(x))
        np.abs(d, out=d)
        parabola = d * d
        parabola *= 0.5
        parabola /= beta
        near = d < beta
        d -= 0.5 * beta
        np.copyto(d, parabola, where=near)
        return _mean_or_sum(d, reduction)


def smooth_l1_loss_backward(
    grad_y: Array, x: Array, target: Array, *, reduction: str = "mean", beta: float = 1.0
) -> Array:
    """`ops.loss.smooth_l1_loss_backward`."""
    if beta == 0:
        return l1_loss_backward(grad_y, x, target, reduction=reduction)
    with np.errstate(all="ignore"):
        d = np.subtract(x, target, out=blocks.empty_like(x))
        above, below = d >= beta, d <= -beta
        d /= beta
        np.copyto(d, -1, where=below)
        np.copyto(d, 1, where=above)
        return np.multiply(d, _of_each(grad_y, x, reduction), out=d)


def binary_cross_entropy(
    x: Array, target: Array, weight: Array | None = None, *, reduction: str = "mean", check_target: bool = True
) -> Array:
    """`ops.loss.binary_cross_entropy`."""
    expect.binary_cross_entropy(x, target, weight, reduction, check_target)
    with np.errstate(all="ignore"):
        losses = np.negative(x, out=blocks.empty_like(x))
        np.maximum(precise(np.log1p, losses, out=losses), -100, out=losses)
        np.multiply(losses, target - 1, out=losses)
        losses -= target * np.maximum(precise(np.log, x), -100)
        return _mean_or_sum(_weighted(losses, weight), reduction)


def binary_cross_entropy_backward(
    grad_y: Array, x: Array, target: Array, weight: Array | None = None, *, reduction: str = "mean"
) -> Array:
    """`ops.loss.binary_cross_entropy_backward`."""
    with np.errstate(all="ignore"):
        grad_x = np.subtract(x, target, out=blocks.empty_like(x))
        grad_x /= np.maximum((1 - x) * x, float(np.float32(1e-12)))
        return np.multiply(_weighted(grad_x, weight), _of_each(grad_y, x, reduction), out=grad_x)


def binary_cross_entropy_backward_target(
    grad_y: Array, x: Array, target: Array, weight: Array | None = None, *, reduction: str = "mean"
) -> Array:
    """`ops.loss.binary_cross_entropy_backward_target`."""
    with np.errstate(all="ignore"):
        grad = np.divide(x, 1 - x, out=blocks.empty_like(target))
        np.negative(precise(np.log, grad, out=grad), out=grad)
        return np.multiply(_weighted(grad, weight), _of_each(grad_y, x, reduction), out=grad)


def binary_cross_entropy_with_logits(
    x: Array,
    target: Array,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    *,
    reduction: str = "mean",
) -> Array:
    """`ops.loss.binary_cross_entropy_with_logits`."""
    expect.binary_cross_entropy_with_logits(x, target, weight, pos_weight, reduction)
    with np.errstate(all="ignore"):
        log_p = logsigmoid(x)
        if pos_weight is not None:
            log_p *= (pos_weight - 1) * target + 1
        losses = np.subtract(1, target, out=blocks.empty_like(target))
        losses *= x
        losses -= log_p
        return _mean_or_sum(_weighted(losses, weight), reduction)


def binary_cross_entropy_with_logits_backward(
    grad_y: Array,
    x: Array,
    target: Array,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    *,
    reduction: str = "mean",
) -> Array:
    """`ops.loss.binary_cross_entropy_with_logits_backward`."""
    with np.errstate(all="ignore"):
        grad_x = sigmoid(x)
        if pos_weight is None:
            grad_x -= target
        else:
            positive = target * pos_weight
            grad_x *= positive + 1 - target
            grad_x -= positive
        return np.multiply(_weighted(grad_x, weight), _of_each(grad_y, x, reduction), out=grad_x)


def binary_cross_entropy_with_logits_backward_target(
    grad_y: Array,
    x: Array,
    target: Array,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    *,
    reduction: str = "mean",
) -> Array:
    """`ops.loss.binary_cross_entropy_with_logits_backward_target`."""
    with np.errstate(all="ignore"):
        grad = np.negative(x, out=blocks.empty_like(x))
        if pos_weight is not None:
            np.subtract(logsigmoid(grad), pos_weight * logsigmoid(x), out=grad)
        return np.multiply(_weighted(grad, weight), _of_each(grad_y, x, reduction), out=grad)


# ---- losses of numbers: their weights and their reduction


def _weighted(losses: Array, weight: Array | None) -> Array:
    """``losses`` itself, multiplied."""
    return losses if weight is None else np.multiply(losses, weight, out=losses)


def _mean_or_sum(losses: Array, reduction: str) -> Array:
    if reduction == "none":
        return losses
    if losses.dtype.kind != "f":
        return np.asarray(losses.sum(dtype=np.int64))
    total: Array = losses.sum(dtype=np.float64)
    return (total / losses.size if reduction == "mean" else total).astype(losses.dtype)


def _of_each(grad_y: Array, x: Array, reduction: str) -> Array:
    """The gradient of each element's loss."""
    return grad_y / max(1, x.size) if reduction == "mean" else grad_y


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
