"""Normalisation: subtract a mean, divide by a standard deviation, then scale and shift.

The three differ in which values share their statistics: a channel over the batch (`batch_norm`), a sample's last axes
(`layer_norm`), a group of a sample's channels (`group_norm`). All have the same gradient. With ``xhat = (x - mean) *
invstd``, ``y = weight * xhat + bias`` and ``g = grad_y * weight``, over the m values that share statistics::

    grad_x      = invstd * (g - mean(g) - xhat * mean(g * xhat))
    grad_weight = sum of grad_y * xhat
    grad_bias   = sum of grad_y

as in S. Ioffe and C. Szegedy, "Batch normalization", https://arxiv.org/abs/1502.03167, section 3.
"""

from collections.abc import Sequence
from math import prod

import numpy as np

from cnn_lightning.ops import _blocks
from cnn_lightning.ops._types import Array

Gradients = tuple[Array | None, Array | None, Array | None]


def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None = None,
    var: Array | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """Normalise each channel, by its own statistics over the batch or by given ones.

    Args:
        x: (N, C) or (N, C, ...).
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        mean: (C,), given in evaluation; None to take it from ``x``.
        var: (C,), likewise: the mean of squared differences (not the unbiased estimate).
        eps: Added to the variance.

    Returns:
        ``(y, mean, var)`` with the statistics that were used.

    Raises:
        RuntimeError: Sizes that don't match the channels.
    """
    _check_channels(x, weight=weight, bias=bias, mean=mean, var=var)
    y = _blocks.empty_like(x)
    shape = (x.shape[1],)
    means, variances = np.empty_like(x, shape=shape), np.empty_like(x, shape=shape)
    axes = (0, *range(2, x.ndim))
    wide = (slice(None), *(None,) * (x.ndim - 2))

    def block(part: slice) -> None:
        values = x[:, part]
        if mean is None or var is None:
            centred, means[part], variances[part] = _centred(values, axes)
        else:
            means[part], variances[part] = mean[part], var[part]
            centred = values - means[part][wide]
        scale = _invstd(variances[part], eps)
        if weight is not None:
            scale = scale * weight[part]
        np.multiply(centred, scale[wide], out=centred)
        if bias is not None:
            centred += bias[part][wide]
        y[:, part] = centred

    _blocks.run(block, _channel_blocks(x), like=x)
    return y, means, variances


def batch_norm_backward(
    grad_y: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    var: Array,
    *,
    eps: float = 1e-5,
    training: bool = True,
    needs: Sequence[bool] = (True, True, True),
) -> Gradients:
    """Gradients of `batch_norm` with respect to x, weight and bias.

    In evaluation the statistics are constants and ``grad_x = invstd * g``.
    """
    axes = (0, *range(2, x.ndim))
    wide = (slice(None), *(None,) * (x.ndim - 2))
    grad_x = _blocks.empty_like(x) if needs[0] else None
    grad_weight, grad_bias = (np.empty_like(x, shape=(x.shape[1],)) for _ in range(2))
    count = prod(x.shape[axis] for axis in axes)

    def block(part: slice) -> None:
        upstream = grad_y[:, part]
        invstd = _invstd(var[part], eps)
        xhat = x[:, part] - mean[part][wide]
        xhat *= invstd[wide]
        grad_bias[part] = upstream.sum(axes)
        grad_weight[part] = _dot(upstream, xhat, axes)
        if grad_x is None:
            return
        scale = invstd if weight is None else invstd * weight[part]
        if training and count:
            xhat *= (grad_weight[part] / -count)[wide]
            xhat -= (grad_bias[part] / count)[wide]
            xhat += upstream
            xhat *= scale[wide]
            grad_x[:, part] = xhat
        else:
            grad_x[:, part] = upstream * scale[wide]

    _blocks.run(block, _channel_blocks(x), like=x)
    return grad_x, grad_weight if needs[1] else None, grad_bias if needs[2] else None


def layer_norm(
    x: Array, weight: Array | None, bias: Array | None, *, axes: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Normalise over the last ``axes`` axes, whose shape ``weight`` and ``bias`` have.

    Returns:
        ``(y, mean, var)``, the statistics with axes of length 1 where ``x`` was reduced.

    Raises:
        RuntimeError: Shapes that don't match.
    """
    inner = x.shape[x.ndim - axes :]
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None and array.shape != inner:
            raise RuntimeError(f"layer_norm: {name}: expected shape {tuple(inner)}, got {tuple(array.shape)}")
    over = tuple(range(x.ndim - axes, x.ndim))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        centred, mean, var = _centred(x, over, keepdims=True)
        centred *= _invstd(var, eps)
        if weight is not None:
            centred *= weight
        if bias is not None:
            centred += bias
    y = _blocks.empty_like(x)
    y[...] = centred
    return y, mean, var


def layer_norm_backward(
    grad_y: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    var: Array,
    *,
    axes: int = 1,
    eps: float = 1e-5,
    needs: Sequence[bool] = (True, True, True),
) -> Gradients:
    """Gradients of `layer_norm` with respect to x, weight and bias."""
    over, outer = tuple(range(x.ndim - axes, x.ndim)), tuple(range(x.ndim - axes))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        invstd = _invstd(var, eps)
        xhat = (x - mean) * invstd
        grad_weight = (grad_y * xhat).sum(outer) if needs[1] else None
        grad_bias = grad_y.sum(outer) if needs[2] else None
        grad_x = None
        if needs[0]:
            g = grad_y if weight is None else grad_y * weight
            grad_x = _blocks.empty_like(x)
            grad_x[...] = (g - g.mean(over, keepdims=True) - xhat * (g * xhat).mean(over, keepdims=True)) * invstd
    return grad_x, grad_weight, grad_bias


def group_norm(
    x: Array, weight: Array | None, bias: Array | None, *, groups: int, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Normalise each of ``groups`` groups of channels of each sample; ``weight`` and ``bias`` are per channel.

    Returns:
        ``(y, mean, var)`` with statistics (N, groups, 1).

    Raises:
        RuntimeError: Channels that don't divide into the groups, or sizes that don't match them.
    """
    if groups < 1 or x.shape[1] % groups:
        raise RuntimeError(f"group_norm: x: expected channels that divide into {groups} groups, got {tuple(x.shape)}")
    _check_channels(x, weight=weight, bias=bias)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        centred, mean, var = _centred(_grouped(x, groups), (2,), keepdims=True)
        centred *= _invstd(var, eps)
        y = _blocks.empty_like(x)
        y[...] = centred.reshape(x.shape)
        wide = (slice(None), *(None,) * (x.ndim - 2))
        if weight is not None:
            y *= weight[wide]
        if bias is not None:
            y += bias[wide]
    return y, mean, var


def group_norm_backward(
    grad_y: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    var: Array,
    *,
    groups: int,
    eps: float = 1e-5,
    needs: Sequence[bool] = (True, True, True),
) -> Gradients:
    """Gradients of `group_norm` with respect to x, weight and bias."""
    axes = (0, *range(2, x.ndim))
    wide = (slice(None), *(None,) * (x.ndim - 2))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        invstd = _invstd(var, eps)
        xhat = (_grouped(x, groups) - mean) * invstd
        grad_weight = (grad_y * xhat.reshape(x.shape)).sum(axes) if needs[1] else None
        grad_bias = grad_y.sum(axes) if needs[2] else None
        grad_x = None
        if needs[0]:
            g = _grouped(grad_y if weight is None else grad_y * weight[wide], groups)
            grad = (g - g.mean(2, keepdims=True) - xhat * (g * xhat).mean(2, keepdims=True)) * invstd
            grad_x = _blocks.empty_like(x)
            grad_x[...] = grad.reshape(x.shape)
    return grad_x, grad_weight, grad_bias


# ---- statistics


def _centred(x: Array, axes: tuple[int, ...], keepdims: bool = False) -> tuple[Array, Array, Array]:
    """``x - mean``, the mean and the variance, in two passes: a large mean costs no digits of the variance.

    The mean of what is left after subtracting a first mean corrects it to the last digit.
    """
    count = prod(x.shape[axis] for axis in axes)
    first = np.divide(x.sum(axes, keepdims=True), count)
    centred = x - first
    rest = np.divide(centred.sum(axes, keepdims=True), count)
    centred -= rest
    mean = first + rest
    if not keepdims:
        mean = mean.reshape([n for axis, n in enumerate(x.shape) if axis not in axes])
    var = np.divide(_dot(centred, centred, axes), count)
    return centred, mean, var.reshape(mean.shape)


def _dot(a: Array, b: Array, axes: tuple[int, ...]) -> Array:
    """Sum of products over ``axes``."""
    result: Array = (a * b).sum(axes)
    return result


def _invstd(var: Array, eps: float) -> Array:
    result: Array = 1 / np.sqrt(var + eps)
    return result


def _grouped(x: Array, groups: int) -> Array:
    return x.reshape(x.shape[0], groups, prod(x.shape[1:]) // groups)


def _channel_blocks(x: Array) -> list[slice]:
    return _blocks.blocks(x.shape[1], 3 * x.itemsize * x.shape[0] * prod(x.shape[2:]))


def _check_channels(x: Array, **arrays: Array | None) -> None:
    for name, array in arrays.items():
        if array is not None and array.shape != (x.shape[1],):
            raise RuntimeError(
                f"{name}: expected one value for each of {x.shape[1]} channels, got {tuple(array.shape)}"
            )
