"""Losses: forward and backward pairs.

Those of classes: scores have shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``. The formulas work on rows of C in
float64, one row for each of M targets; the targets are rows, too: see `Targets`. Those of numbers have one loss for
each element of ``x``.
"""

import math
from typing import NamedTuple

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.activation import logsigmoid, sigmoid
from cnn_lightning.ops.softmax import log_softmax
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
    """``loss = -sum_c a_c log softmax(logits)_c`` for each target, and their mean.

    With smoothing e, a class index t means ``a = (1 - e) weight_t onehot(t) + e weight / C`` (0 where it is ignored),
    class probabilities q mean ``a = weight ((1 - e) q + e / C)``. The mean divides by the sum of ``weight_t`` over the
    targets that are not ignored; for probabilities by M.

    Args:
        logits: ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: Class indices, in the shape of ``logits`` without C, or class probabilities, in the shape of ``logits``.
        weight: ``(C,)``, a factor for each class.
        ignore_index: The index of targets that do not count.
        reduction: "mean", "sum" or "none".
        label_smoothing: e, at most 1.
        check_target: Whether to check the range of indices. On a GPU this waits for the device.

    Returns:
        A scalar, or for "none" an array in the shape of ``logits`` without C.

    Raises:
        IndexError: An index is neither in ``[0, C)`` nor ``ignore_index``.
        ValueError: Batch sizes differ, or the reduction is unknown.
        TypeError: ``ignore_index`` is not an integer.
        RuntimeError: Other shapes or dtypes do not match, or an option is out of range.
    """
    expect.cross_entropy(logits, target, weight, ignore_index, reduction, label_smoothing, check_target)
    targets = _targets(logits, target, weight, ignore_index, label_smoothing)
    return _reduced(_losses(targets, log_softmax(_rows(logits), dim=1)), targets, reduction, logits)


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
    """``grad_logits = grad_loss (sum_c a_c softmax(logits) - a)``, with the gradient of each target's loss."""
    targets = _targets(logits, target, weight, ignore_index, label_smoothing)
    p = np.exp(log_softmax(_rows(logits), dim=1))
    slope = targets.a.sum(1, keepdims=True) * p - targets.a
    return _unrows(_grad_losses(grad_y, targets, reduction) * slope, logits)


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
    """``grad_target = -grad_loss weight (1 - e) log softmax(logits)``: class probabilities have a gradient too."""
    targets = _targets(logits, target, weight, ignore_index, label_smoothing)
    slope = -(1 - _smoothing(label_smoothing)) * log_softmax(_rows(logits), dim=1)
    slope = slope if weight is None else slope * weight
    return _unrows(_grad_losses(grad_y, targets, reduction) * slope, target)


def nll_loss(
    log_probs: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    check_target: bool = True,
) -> Array:
    """``loss = -weight_t log_probs_t`` for each class index t, and their mean.

    Arguments, results and errors are those of `cross_entropy` with class indices.
    """
    expect.nll_loss(log_probs, target, weight, ignore_index, reduction, check_target)
    targets = _targets(log_probs, target, weight, ignore_index, 0.0)
    return _reduced(_losses(targets, _rows(log_probs)), targets, reduction, log_probs)


def nll_loss_backward(
    grad_y: Array,
    log_probs: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Array:
    """``grad_log_probs = -grad_loss weight_t onehot(t)``."""
    targets = _targets(log_probs, target, weight, ignore_index, 0.0)
    slope = np.where(targets.counts, _grad_losses(grad_y, targets, reduction) * targets.a, 0)
    return _unrows(0 - slope, log_probs)  # never -0


def mse_loss(x: Array, target: Array, *, reduction: str = "mean") -> Array:
    """``loss = (x - target)^2`` for each element, and their mean (or sum). Both arrays have one shape.

    Raises:
        ValueError: The reduction is unknown.
        NotImplementedError: ``x`` is not floating.
    """
    expect.reduction(reduction)
    expect.dtype("x", x)
    return _mean_or_sum((x - target) ** 2, reduction)


def mse_loss_backward(grad_y: Array, x: Array, target: Array, *, reduction: str = "mean") -> Array:
    """``grad_x = 2 (x - target) grad_loss``; that of ``target`` is its negative."""
    return (x - target) * (2 / max(1, x.size) if reduction == "mean" else 2) * grad_y


def l1_loss(x: Array, target: Array, *, reduction: str = "mean") -> Array:
    """``loss = |x - target|`` for each element, and their mean (or sum). Both arrays have one shape.

    Raises:
        ValueError: The reduction is unknown.
        RuntimeError: The mean of integers.
        NotImplementedError: ``x`` is of booleans.
    """
    expect.l1_loss(x, reduction)
    return _mean_or_sum(np.abs(x - target), reduction)


def l1_loss_backward(grad_y: Array, x: Array, target: Array, *, reduction: str = "mean") -> Array:
    """``grad_x = sign(x - target) grad_loss``, 0 also where that is NaN; that of ``target`` is its negative."""
    d = x - target
    sign = (d > 0).astype(x.dtype) - (d < 0)
    return sign * _of_each(grad_y, x, reduction)


def smooth_l1_loss(x: Array, target: Array, *, reduction: str = "mean", beta: float = 1.0) -> Array:
    """``loss = d^2 / (2 beta) where |d| < beta, else |d| - beta / 2``, ``d = x - target``; their mean (or sum).

    With ``beta`` 0 it is `l1_loss`. Both arrays have one shape.

    Raises:
        ValueError: The reduction is unknown.
        TypeError: ``beta`` is not a number.
        RuntimeError: ``beta`` is negative.
        NotImplementedError: ``x`` is not floating.
    """
    expect.smooth_l1_loss(x, reduction, beta)
    if beta == 0:
        return l1_loss(x, target, reduction=reduction)
    d = np.abs(x - target)
    return _mean_or_sum(np.where(d < beta, d * d * 0.5 / beta, d - 0.5 * beta), reduction)


def smooth_l1_loss_backward(
    grad_y: Array, x: Array, target: Array, *, reduction: str = "mean", beta: float = 1.0
) -> Array:
    """``grad_x = grad_loss d / beta where |d| < beta, else sign(d) grad_loss``; that of ``target`` is its negative."""
    if beta == 0:
        return l1_loss_backward(grad_y, x, target, reduction=reduction)
    d = x - target
    slope = np.where(d >= beta, 1, np.where(d <= -beta, -1, d / beta)).astype(x.dtype)
    return slope * _of_each(grad_y, x, reduction)


def binary_cross_entropy(
    x: Array, target: Array, weight: Array | None = None, *, reduction: str = "mean", check_target: bool = True
) -> Array:
    """``loss = -weight (target log x + (1 - target) log(1 - x))`` for each element, and their mean (or sum).

    Logarithms below -100 count as -100, so that no loss is infinite.

    Args:
        x: Probabilities.
        target: Probabilities, in the shape of ``x``.
        weight: Broadcasts to the shape of ``x``.
        reduction: "mean", "sum" or "none".
        check_target: Whether to check that all are between 0 and 1. On a GPU this waits for the device.

    Raises:
        ValueError: The reduction is unknown, or shapes differ.
        RuntimeError: Dtypes differ, numbers are out of range, or ``weight`` does not broadcast.
        NotImplementedError: ``x`` is not floating.
    """
    expect.binary_cross_entropy(x, target, weight, reduction, check_target)
    losses = (target - 1) * np.maximum(np.log1p(-x), -100) - target * np.maximum(np.log(x), -100)
    return _mean_or_sum(_weighted(losses, weight), reduction)


def binary_cross_entropy_backward(
    grad_y: Array, x: Array, target: Array, weight: Array | None = None, *, reduction: str = "mean"
) -> Array:
    """``grad_x = weight (x - target) / (x (1 - x)) grad_loss``, with a divisor of at least 1e-12 (in float32)."""
    slope = (x - target) / np.maximum((1 - x) * x, float(np.float32(1e-12)))
    return _weighted(slope, weight) * _of_each(grad_y, x, reduction)


def binary_cross_entropy_backward_target(
    grad_y: Array, x: Array, target: Array, weight: Array | None = None, *, reduction: str = "mean"
) -> Array:
    """``grad_target = -weight log(x / (1 - x)) grad_loss``."""
    return _weighted(-np.log(x / (1 - x)), weight) * _of_each(grad_y, x, reduction)


def binary_cross_entropy_with_logits(
    x: Array,
    target: Array,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    *,
    reduction: str = "mean",
) -> Array:
    """`binary_cross_entropy` of ``sigmoid(x)``, without its overflow.

    ``loss = weight ((1 - target) x - (1 + (pos_weight - 1) target) log sigmoid(x))``: ``pos_weight`` is a factor of
    the target's part of the loss. It broadcasts to the shape of ``x``, as ``weight`` does.

    Raises:
        ValueError: The reduction is unknown, or shapes differ.
        RuntimeError: A weight does not broadcast, or dtypes differ.
        NotImplementedError: ``x`` is not floating.
    """
    expect.binary_cross_entropy_with_logits(x, target, weight, pos_weight, reduction)
    log_p = logsigmoid(x) if pos_weight is None else logsigmoid(x) * ((pos_weight - 1) * target + 1)
    return _mean_or_sum(_weighted((1 - target) * x - log_p, weight), reduction)


def binary_cross_entropy_with_logits_backward(
    grad_y: Array,
    x: Array,
    target: Array,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    *,
    reduction: str = "mean",
) -> Array:
    """``grad_x = weight ((1 - target + pos_weight target) sigmoid(x) - pos_weight target) grad_loss``."""
    positive = target if pos_weight is None else target * pos_weight
    slope = sigmoid(x) - target if pos_weight is None else (positive + 1 - target) * sigmoid(x) - positive
    return _weighted(slope, weight) * _of_each(grad_y, x, reduction)


def binary_cross_entropy_with_logits_backward_target(
    grad_y: Array,
    x: Array,
    target: Array,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    *,
    reduction: str = "mean",
) -> Array:
    """``grad_target = weight (log(1 - sigmoid(x)) - pos_weight log sigmoid(x)) grad_loss``, without weights ``-x``."""
    slope = -x if pos_weight is None else logsigmoid(-x) - pos_weight * logsigmoid(x)
    return _weighted(slope, weight) * _of_each(grad_y, x, reduction)


# ---- losses of numbers: their weights and their reduction


def _weighted(losses: Array, weight: Array | None) -> Array:
    return losses if weight is None else losses * weight


def _mean_or_sum(losses: Array, reduction: str) -> Array:
    if reduction == "none":
        return losses
    if losses.dtype.kind != "f":
        return losses.sum(dtype=np.int64)
    total = losses.sum(dtype=np.float64)
    return (np.divide(total, losses.size) if reduction == "mean" else total).astype(losses.dtype)


def _of_each(grad_y: Array, x: Array, reduction: str) -> Array:
    """The gradient of each element's loss."""
    return grad_y / max(1, x.size) if reduction == "mean" else grad_y


# ---- scores and targets as rows, and their reduction


def _rows(scores: Array) -> Array:
    """``(N, C, d1, ...)`` as ``(M, C)`` in float64, where M is 1 for scores of shape ``(C,)``."""
    rows = np.moveaxis(scores, 1, -1) if scores.ndim > 2 else scores
    return rows.reshape(expect.rows_of_losses(scores), expect.number_of_classes(scores)).astype(np.float64)


def _unrows(rows: Array, scores: Array) -> Array:
    """Rows back in the shape and dtype of ``scores``."""
    rows = rows.astype(scores.dtype)
    if scores.ndim <= 2:
        return rows.reshape(scores.shape)
    return np.moveaxis(rows.reshape(*expect.shape_of_losses(scores), scores.shape[1]), -1, 1)


def _smoothing(label_smoothing: float) -> float:
    """As in torch, 0 if it is negative or NaN."""
    return label_smoothing if label_smoothing > 0 else 0.0


class Targets(NamedTuple):
    """The factors of a loss that follow from its targets, a row for each target.

    Attributes:
        a: (M, C), the factor of ``-log p`` of each class.
        counts: (M, C), whether the class counts in the loss. The scores of the others may be infinity or NaN.
        valid: (M,), whether the target is not ignored.
        factor: (M,), its summand in the divisor of the mean.
    """

    a: Array
    counts: Array
    valid: Array
    factor: Array


def _targets(scores: Array, target: Array, weight: Array | None, ignore_index: int, label_smoothing: float) -> Targets:
    count, e = expect.number_of_classes(scores), _smoothing(label_smoothing)
    weights = np.ones_like(scores, shape=(count,)) if weight is None else weight
    even = e / max(1, count) * weights
    if target.shape == scores.shape:
        a = _rows(target) * (1 - e) * weights + even
        ones = np.ones_like(scores, shape=(a.shape[0],))
        return Targets(a, np.ones_like(a, dtype=bool), ones > 0, ones)
    classes = target.reshape(math.prod(target.shape), 1)
    valid = classes != ignore_index
    onehot = valid & (classes == np.arange(count, like=classes))
    a = np.where(onehot, (1 - e) * weights, 0) + np.where(valid, even, 0)
    counts = onehot if e == 0 else np.broadcast_to(valid, a.shape)
    return Targets(a, counts, valid[:, 0], np.where(onehot, weights, 0).sum(1))


def _losses(targets: Targets, log_p: Array) -> Array:
    """``-sum_c a_c log p_c`` for each row."""
    return -np.where(targets.counts, targets.a * log_p, 0).sum(1)


def _reduced(losses: Array, targets: Targets, reduction: str, scores: Array) -> Array:
    """The mean over the targets that are not ignored, the sum, or the losses themselves."""
    if reduction == "none":
        return losses.reshape(expect.shape_of_losses(scores)).astype(scores.dtype)
    total = losses.sum()
    if reduction == "mean":
        divisor = targets.factor.sum(dtype=np.float64)
        total = np.where(divisor == 0, math.nan, total / divisor)  # also if smoothing makes the total other than 0
    return total.astype(scores.dtype)


def _grad_losses(grad_y: Array, targets: Targets, reduction: str) -> Array:
    """The gradient of the loss of each row (M, 1), in float64: 0 for ignored targets."""
    grad = grad_y.astype(np.float64)
    if reduction == "mean":
        grad = grad / targets.factor.sum(dtype=np.float64)
    if reduction == "none":
        grad = grad.reshape(targets.valid.shape)
    return np.where(targets.valid, grad, 0)[:, None]
