"""Normalisation: subtract a mean, divide by a standard deviation, then scale and shift.

The three differ in the values that have common statistics: a channel over the batch (`batch_norm`), the last axes of a
sample (`layer_norm`), a group of channels of a sample (`group_norm`). All have the same gradient. With ``xhat = (x -
mean) * invstd``, ``y = weight * xhat + bias`` and ``g = grad_y * weight``, means taken over the values with common
statistics::

    grad_x      = invstd * (g - mean(g) - xhat * mean(g * xhat))
    grad_weight = sum of grad_y * xhat
    grad_bias   = sum of grad_y

as in S. Ioffe and C. Szegedy, "Batch normalization", https://arxiv.org/abs/1502.03167, section 3. All is computed in
float64, in two passes, so that neither a large mean nor a long sum loses digits.

`rms_norm` subtracts no mean and divides by the root of the mean square; its gradient has no ``mean(g)``.
"""

from math import prod

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.types import Array

Gradients = tuple[Array, Array, Array]


def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None = None,
    var: Array | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """Normalise each channel, by its statistics over the batch or by given ones.

    Args:
        x: (N, C) or (N, C, ...).
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        mean: (C,), given in evaluation; None to compute it from ``x``.
        var: (C,), likewise: the mean of squared differences (not the unbiased estimate).
        eps: Added to the variance.

    Returns:
        ``(y, mean, var)`` with the statistics that were used, in float64.

    Raises:
        RuntimeError: The size of an array is not the number of channels.
    """
    expect.channels(x, weight=weight, bias=bias, mean=mean, var=var)
    mean = _channel_mean(x) if mean is None else mean.astype(np.float64)
    var = _channel_mean((x - _across(mean, x)) ** 2) if var is None else var.astype(np.float64)
    y = (x - _across(mean, x)) / np.sqrt(_across(var, x) + eps)
    y = y if weight is None else y * _across(weight, x)
    y = y if bias is None else y + _across(bias, x)
    return y.astype(x.dtype), mean, var


def batch_norm_backward(
    grad_y: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    var: Array,
    *,
    eps: float = 1e-5,
    training: bool = True,
) -> Gradients:
    """Gradients of `batch_norm` with respect to x, weight and bias.

    In evaluation the statistics are constants and ``grad_x = invstd * g``.
    """
    invstd = 1 / np.sqrt(_across(var, x) + eps)
    xhat, scale = (x - _across(mean, x)) * invstd, invstd if weight is None else invstd * _across(weight, x)
    axes, count = (0, *range(2, x.ndim)), max(1, x.size // max(1, x.shape[1]))
    grad_weight, grad_bias = (grad_y * xhat).sum(axes), grad_y.sum(axes, dtype=np.float64)
    grad_x = scale * grad_y
    if training:
        grad_x = scale * (grad_y - _across(grad_bias / count, x) - xhat * _across(grad_weight / count, x))
    return grad_x.astype(x.dtype), grad_weight.astype(x.dtype), grad_bias.astype(x.dtype)


def batch_norm_backward_part(
    grad_y: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    var: Array,
    grad_weight: Array,
    grad_bias: Array,
    *,
    count: int,
    eps: float = 1e-5,
) -> Array:
    """``grad_x`` of `batch_norm` for a slice ``x`` of a batch that is divided among processes.

    Args:
        grad_y: (N, C, ...).
        x: (N, C, ...).
        weight: (C,) or None.
        mean: (C,), of the whole batch.
        var: (C,), likewise.
        grad_weight: (C,), the sum over all processes.
        grad_bias: (C,), likewise.
        count: Values per channel of the whole batch.
        eps: Added to the variance.
    """
    invstd = 1 / np.sqrt(_across(var, x) + eps)
    xhat, scale = (x - _across(mean, x)) * invstd, invstd if weight is None else invstd * _across(weight, x)
    grad_x = scale * (grad_y - _across(grad_bias / count, x) - xhat * _across(grad_weight / count, x))
    return grad_x.astype(x.dtype)


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and variance of each channel over (N, C, ...), in float64: for a process that has a slice of the batch."""
    mean = _channel_mean(x)
    return mean, _channel_mean((x - _across(mean, x)) ** 2)


def _across(values: Array, x: Array) -> Array:
    """One value for each channel, in float64 and in a shape that broadcasts to ``x``."""
    return values.astype(np.float64).reshape(1, x.shape[1], *(1,) * (x.ndim - 2))


def _channel_sum(x: Array) -> Array:
    """(N, C, ...) to (C,), in float64."""
    return x.sum((0, *range(2, x.ndim)), dtype=np.float64)


def _channel_mean(x: Array) -> Array:
    """(N, C, ...) to (C,), in float64; 0 for an empty batch."""
    return _channel_sum(x) / max(1, x.size // max(1, x.shape[1]))


def layer_norm(
    x: Array, weight: Array | None, bias: Array | None, *, axes: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Normalise over the last ``axes`` axes; ``weight`` and ``bias`` have the shape of these.

    Returns:
        ``(y, mean, var)``; the statistics are in float64, with length 1 in the last ``axes`` axes.

    Raises:
        RuntimeError: Shapes do not match.
    """
    expect.layer_norm(x, weight, bias, axes)
    last = tuple(range(-axes, 0))
    count = max(1, prod(x.shape[-axes:]))
    mean = x.sum(last, dtype=np.float64, keepdims=True) / count
    var = ((x - mean) ** 2).sum(last, keepdims=True) / count
    y = (x - mean) / np.sqrt(var + eps)
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y.astype(x.dtype), mean, var


def layer_norm_backward(
    grad_y: Array, x: Array, weight: Array | None, mean: Array, var: Array, *, axes: int = 1, eps: float = 1e-5
) -> Gradients:
    """Gradients of `layer_norm` with respect to x, weight and bias."""
    last, first = tuple(range(-axes, 0)), tuple(range(x.ndim - axes))
    count, invstd = max(1, prod(x.shape[-axes:])), 1 / np.sqrt(var + eps)
    xhat, wide = (x - mean) * invstd, grad_y.astype(np.float64)
    g = wide if weight is None else wide * weight
    of_grad, of_dot = (value.sum(last, keepdims=True) / count for value in (g, g * xhat))
    grad_x = invstd * (g - of_grad - xhat * of_dot)
    grad_weight, grad_bias = (wide * xhat).sum(first), wide.sum(first)
    return grad_x.astype(x.dtype), grad_weight.astype(x.dtype), grad_bias.astype(x.dtype)


def group_norm(
    x: Array, weight: Array | None, bias: Array | None, *, groups: int, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Normalise each of ``groups`` groups of channels of each sample; ``weight`` and ``bias`` are per channel.

    Returns:
        ``(y, mean, var)`` with statistics (N, groups, 1), in float64.

    Raises:
        RuntimeError: ``groups`` does not divide the channels, or the size of an array is not their number.
    """
    expect.group_norm(x, weight, bias, groups)
    rows = x.reshape(x.shape[0], groups, prod(x.shape[1:]) // groups)
    y, mean, var = layer_norm(rows.astype(np.float64), None, None, eps=eps)
    y = y.reshape(x.shape)
    y = y if weight is None else y * _across(weight, x)
    y = y if bias is None else y + _across(bias, x)
    return y.astype(x.dtype), mean, var


def group_norm_backward(
    grad_y: Array, x: Array, weight: Array | None, mean: Array, var: Array, *, groups: int, eps: float = 1e-5
) -> Gradients:
    """Gradients of `group_norm` with respect to x, weight and bias."""
    shape = x.shape[0], groups, prod(x.shape[1:]) // groups
    rows = x.reshape(shape).astype(np.float64)
    g = grad_y if weight is None else grad_y * _across(weight, x)
    grad_x, _, _ = layer_norm_backward(g.reshape(shape), rows, None, mean, var, eps=eps)
    xhat = ((rows - mean) / np.sqrt(var + eps)).reshape(x.shape)
    grad_weight, grad_bias = _channel_sum(grad_y * xhat), _channel_sum(grad_y)
    return grad_x.reshape(x.shape).astype(x.dtype), grad_weight.astype(x.dtype), grad_bias.astype(x.dtype)


def instance_norm(
    x: Array, weight: Array | None, bias: Array | None, *, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Normalise each channel of each sample, by its own statistics: `group_norm` with one channel in a group.

    Returns:
        ``(y, mean, var)`` with statistics (N, C, 1), in float64.

    Raises:
        RuntimeError: Sizes of weight or bias that don't match the channels.
    """
    expect.channels(x, weight=weight, bias=bias)
    return group_norm(x, weight, bias, groups=x.shape[1], eps=eps)


def instance_norm_backward(
    grad_y: Array, x: Array, weight: Array | None, mean: Array, var: Array, *, eps: float = 1e-5
) -> Gradients:
    """Gradients of `instance_norm` with respect to x, weight and bias."""
    return group_norm_backward(grad_y, x, weight, mean, var, groups=x.shape[1], eps=eps)


def rms_norm(x: Array, weight: Array | None, *, axes: int = 1, eps: float | None = None) -> tuple[Array, Array]:
    """Divide by the root of the mean square over the last ``axes`` axes: ``y = weight * x / sqrt(mean(x^2) + eps)``.

    Args:
        x: Any shape.
        weight: Of the shape of the last ``axes`` axes, or None for 1.
        axes: Number of axes that the mean is taken over.
        eps: Added to the mean square; None for the machine epsilon of the dtype.

    Returns:
        ``(y, rms)``; the roots are in float64, with length 1 in the last ``axes`` axes.

    Raises:
        NotImplementedError: ``x`` is not floating.
        ValueError: ``x`` has fewer axes.
        RuntimeError: Shapes do not match.
    """
    expect.rms_norm(x, weight, axes)
    eps = float(np.finfo(x.dtype).eps) if eps is None else eps
    last, count = tuple(range(-axes, 0)), max(1, prod(x.shape[-axes:]))
    rms = np.sqrt((x.astype(np.float64) ** 2).sum(last, keepdims=True) / count + eps)
    y = x / rms if weight is None else x / rms * weight
    return y.astype(x.dtype), rms


def rms_norm_backward(
    grad_y: Array, x: Array, weight: Array | None, rms: Array, *, axes: int = 1
) -> tuple[Array, Array]:
    """Gradients of `rms_norm` with respect to x and weight.

    With ``xhat = x / rms`` and ``g = grad_y * weight``: ``grad_x = (g - xhat * mean(g * xhat)) / rms``, and
    ``grad_weight`` is the sum of ``grad_y * xhat`` over the first axes.
    """
    last, first = tuple(range(-axes, 0)), tuple(range(x.ndim - axes))
    count, xhat, wide = max(1, prod(x.shape[-axes:])), x / rms, grad_y.astype(np.float64)
    g = wide if weight is None else wide * weight
    grad_x = (g - xhat * ((g * xhat).sum(last, keepdims=True) / count)) / rms
    return grad_x.astype(x.dtype), (wide * xhat).sum(first).astype(x.dtype)
