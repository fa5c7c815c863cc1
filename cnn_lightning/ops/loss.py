"""Losses: cross entropy, negative log-likelihood and mean squared error; forward and backward pairs.

Scores have shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``. Inside they are rows of C, one for each of M targets.
"""

import math

import numpy as np

from cnn_lightning.ops import _blocks
from cnn_lightning.ops._special import precise
from cnn_lightning.ops._types import Array


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
        target: Class indices, in the shape of ``logits`` less C, or class probabilities, in the shape of ``logits``.
        weight: ``(C,)``, a factor for each class.
        ignore_index: The index of targets that do not count.
        reduction: "mean", "sum" or "none".
        label_smoothing: e, at most 1.
        check_target: Look for indices out of range. On a GPU this waits for the device.

    Returns:
        A scalar, or for "none" an array in the shape of ``logits`` less C.

    Raises:
        IndexError: An index that is neither in ``[0, C)`` nor ``ignore_index``.
        ValueError: Batch sizes that differ, or an unknown reduction.
        TypeError: An ``ignore_index`` that is no integer.
        RuntimeError: Other shapes or dtypes that do not go together, or an option out of range.
    """
    _check_reduction(reduction)
    _check_smoothing(label_smoothing)
    _check_floating("logits", logits)
    if target.shape == logits.shape:
        _check_probabilities(logits, target, weight, ignore_index)
    if logits.ndim == 0:
        raise IndexError("logits: expected at least one dimension, that of the classes, got none")
    if target.shape != logits.shape:
        _check_classes(logits, target, weight, ignore_index, check_target)
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
    """``grad_logits = grad_loss (sum_c a_c softmax(logits) - a)`` for each target's share of ``grad_y``."""
    rows = _shifted(_rows(logits))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        precise(np.exp, rows, out=rows)
        np.divide(rows, _sum(rows)[:, None], out=rows, casting="same_kind")
        if target.shape != logits.shape and not label_smoothing > 0:
            classes, valid, factor = _classes(logits, target, weight, ignore_index)
            scale = _share(grad_y, valid, factor, reduction) * factor
            np.multiply(rows, scale[:, None], out=rows)
            rows[np.arange(rows.shape[0], like=rows), classes] -= scale
        else:
            a, valid, factor = _soft(logits, target, weight, ignore_index, label_smoothing)
            share = _share(grad_y, valid, factor, reduction)
            np.multiply(rows, (share * a.sum(axis=1))[:, None], out=rows)
            np.subtract(rows, share[:, None] * a, out=rows)
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
    """``grad_target = -grad_loss weight (1 - e) log softmax(logits)``: class probabilities have a gradient too."""
    rows = _shifted(_rows(logits))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        np.subtract(np.log(_sum(precise(np.exp, rows)))[:, None], rows, out=rows, casting="same_kind")
        _, valid, factor = _soft(logits, target, weight, ignore_index, label_smoothing)
        share = _share(grad_y, valid, factor, reduction) * (1 - _smoothing(label_smoothing))
        np.multiply(rows, share[:, None], out=rows)
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
    """``loss = -weight_t log_probs_t`` for each class index t, and their mean.

    Arguments, results and errors are those of `cross_entropy` with class indices.
    """
    _check_reduction(reduction)
    _check_floating("log_probs", log_probs)
    _check_classes(log_probs, target, weight, ignore_index, check_target)
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
    """``grad_log_probs = -grad_loss weight_t onehot(t)``."""
    classes, valid, factor = _classes(log_probs, target, weight, ignore_index)
    rows = np.zeros((classes.shape[0], _classes_number(log_probs)), dtype=log_probs.dtype, like=log_probs)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = _share(grad_y, valid, factor, reduction)
        rows[np.arange(rows.shape[0], like=rows), classes] = 0 - share * factor  # never -0
    return _unrows(rows, log_probs)


def mse_loss(x: Array, target: Array, *, reduction: str = "mean") -> Array:
    """``loss = (x - target)^2`` for each element, and their mean (or sum); both of one shape.

    Raises:
        ValueError: An unknown reduction.
        NotImplementedError: Arrays that are not floating.
    """
    _check_reduction(reduction)
    _check_floating("x", x)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        losses = np.subtract(x, target, out=_blocks.empty_like(x))
        np.square(losses, out=losses)
        if reduction == "none":
            return losses
        total: Array = losses.sum(dtype=np.float64)
        return (total / x.size if reduction == "mean" else total).astype(x.dtype)


def mse_loss_backward(grad_y: Array, x: Array, target: Array, *, reduction: str = "mean") -> Array:
    """``grad_x = 2 (x - target) grad_loss``; that of ``target`` is its negative."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        grad_x = np.subtract(x, target, out=_blocks.empty_like(x))
        scale = np.divide(2.0, x.size) if reduction == "mean" else 2.0
        np.multiply(grad_x, float(scale), out=grad_x)
        np.multiply(grad_x, grad_y, out=grad_x)
    return grad_x


# ---- scores as rows


def _classes_number(scores: Array) -> int:
    return int(scores.shape[0 if scores.ndim == 1 else 1])


def _losses_shape(scores: Array) -> tuple[int, ...]:
    return () if scores.ndim == 1 else (scores.shape[0], *scores.shape[2:])


def _rows(scores: Array) -> Array:
    """``(N, C, d1, ...)`` as ``(M, C)``, where M is 1 for scores of shape ``(C,)``."""
    rows = np.moveaxis(scores, 1, -1) if scores.ndim > 2 else scores
    return rows.reshape(math.prod(_losses_shape(scores)), _classes_number(scores))


def _unrows(rows: Array, scores: Array) -> Array:
    """Rows back in the shape and memory layout of ``scores``."""
    if scores.ndim <= 2:
        return rows.reshape(scores.shape)
    result = _blocks.empty_like(scores)
    np.copyto(result, np.moveaxis(rows.reshape(*_losses_shape(scores), scores.shape[1]), -1, 1))
    return result


def _shifted(rows: Array) -> Array:
    """Less each row's maximum, so that no exponential overflows; a new array."""
    if rows.shape[1] == 0:
        return np.empty_like(rows)
    with np.errstate(invalid="ignore"):
        shifted: Array = rows - rows.max(axis=1, keepdims=True)
    return shifted


def _sum(rows: Array) -> Array:
    """Each row's sum, in float64 whatever the dtype of the rows."""
    total: Array = rows.sum(axis=1, dtype=np.float64)
    return total


def _picked(rows: Array, classes: Array) -> Array:
    return rows[np.arange(rows.shape[0], like=rows), classes]


# ---- targets


def _classes(scores: Array, target: Array, weight: Array | None, ignore_index: int) -> tuple[Array, Array, Array]:
    """For each row: its class (0 where ignored), whether it counts, and its factor (0 where ignored)."""
    flat = target.reshape(math.prod(target.shape))
    valid = flat != ignore_index
    classes = np.where(valid, flat, 0)
    factor = valid.astype(scores.dtype)
    if weight is not None:
        factor = np.where(valid, weight[classes], factor)
    return classes, valid, factor


def _smoothing(label_smoothing: float) -> float:
    """As torch takes it: none where it is negative or NaN."""
    return label_smoothing if label_smoothing > 0 else 0.0


def _soft(
    logits: Array, target: Array, weight: Array | None, ignore_index: int, label_smoothing: float
) -> tuple[Array, Array, Array]:
    """For each row: its ``a`` of `cross_entropy`, whether it counts, and its part in the mean's divisor."""
    smoothing = _smoothing(label_smoothing)
    if target.shape == logits.shape:
        a = _rows(target) * (1 - smoothing) + smoothing / max(1, _classes_number(logits))
        if weight is not None:
            a = a * weight
        ones = np.ones_like(logits, shape=(a.shape[0],))
        return a, ones != 0, ones
    classes, valid, factor = _classes(logits, target, weight, ignore_index)
    number = _classes_number(logits)
    a = np.full_like(logits, smoothing / max(1, number), shape=(classes.shape[0], number), order="C")
    if weight is not None:
        a *= weight
    a[np.arange(a.shape[0], like=a), classes] += factor * (1 - smoothing)
    return a, valid, factor


# ---- reduction


def _reduced(losses: Array, valid: Array, factor: Array, reduction: str, scores: Array) -> Array:
    losses = np.where(valid, losses, 0)  # not a product: an ignored row may hold infinity
    if reduction == "none":
        return losses.reshape(_losses_shape(scores)).astype(scores.dtype, copy=False)
    total: Array = losses.sum(dtype=np.float64)
    if reduction == "mean":
        divisor = factor.sum(dtype=np.float64)
        total = np.where(divisor == 0, math.nan, total / divisor)  # also where smoothing leaves a loss to divide
    return total.astype(scores.dtype)


def _share(grad_y: Array, valid: Array, factor: Array, reduction: str) -> Array:
    """Each row's part of ``grad_y``: the gradient of its own loss."""
    if reduction == "none":
        share = grad_y.reshape(valid.shape)
    else:
        share = np.broadcast_to(grad_y / factor.sum() if reduction == "mean" else grad_y, valid.shape)
    return np.where(valid, share, 0)


# ---- what torch refuses


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")


def _check_smoothing(label_smoothing: float) -> None:
    if label_smoothing > 1:
        raise RuntimeError(f"label_smoothing: expected a number between 0 and 1, got {label_smoothing}")


def _check_floating(name: str, x: Array) -> None:
    if x.dtype.kind != "f":
        raise NotImplementedError(f"{name}: expected a floating dtype, got {x.dtype}")


def _check_weight(scores: Array, weight: Array | None) -> None:
    if weight is not None and weight.dtype != scores.dtype:
        raise RuntimeError(f"weight: expected the dtype of the scores, {scores.dtype}, got {weight.dtype}")
    if weight is not None and weight.shape != (_classes_number(scores),):
        raise RuntimeError(
            f"weight: expected one factor for each of {_classes_number(scores)} classes, got shape {weight.shape}"
        )


def _check_probabilities(logits: Array, target: Array, weight: Array | None, ignore_index: int) -> None:
    if target.dtype.kind != "f":
        raise RuntimeError(
            f"target: expected a floating dtype for class probabilities (the shape of logits), got {target.dtype}"
        )
    if ignore_index >= 0:
        raise RuntimeError(f"ignore_index: expected none (-100) with class probabilities, got {ignore_index}")
    _check_weight(logits, weight)


def _check_classes(scores: Array, target: Array, weight: Array | None, ignore_index: int, check_range: bool) -> None:
    if not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an integer, got {type(ignore_index).__name__}")
    if scores.ndim == 0:
        raise ValueError("log_probs: expected at least one dimension, that of the classes, got none")
    if scores.ndim == 1 and target.ndim < 2:
        if target.size != 1:
            _check_indices(scores, target)
            raise ValueError(f"target: expected one class for scores of shape {scores.shape}, got {target.shape}")
    elif scores.ndim <= 2 and target.ndim > 1:
        raise RuntimeError(f"target: expected no more than one dimension, got shape {target.shape}")
    elif target.shape[:1] != scores.shape[:1]:
        raise ValueError(f"target: expected a batch of {scores.shape[0]}, got shape {target.shape}")
    elif target.shape != _losses_shape(scores):
        raise RuntimeError(f"target: expected shape {_losses_shape(scores)}, got {target.shape}")
    _check_indices(scores, target)
    _check_weight(scores, weight)
    if check_range:
        number = _classes_number(scores)
        bad = target[(target != ignore_index) & ((target < 0) | (target >= number))]
        if bad.size:
            raise IndexError(f"target: expected classes from 0 to {number - 1}, got {bad.reshape(-1)[0]}")


def _check_indices(scores: Array, target: Array) -> None:
    if target.dtype != np.int64 and not (target.dtype == np.uint8 and scores.ndim <= 2):
        raise RuntimeError(f"target: expected class indices of dtype int64, got {target.dtype}")
