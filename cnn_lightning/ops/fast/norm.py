"""Normalisation: subtract a mean, divide by a standard deviation, then scale and shift.

The three differ in the values that have common statistics: a channel over the batch (`batch_norm`), the last axes of a
sample (`layer_norm`), a group of channels of a sample (`group_norm`). All have the same gradient. With ``xhat = (x -
mean) * invstd``, ``y = weight * xhat + bias`` and ``g = grad_y * weight``, means taken over the values with common
statistics::

    grad_x      = invstd * (g - mean(g) - xhat * mean(g * xhat))
    grad_weight = sum of grad_y * xhat
    grad_bias   = sum of grad_y

as in S. Ioffe and C. Szegedy, "Batch normalization", https://arxiv.org/abs/1502.03167, section 3.

All works on blocks of values that stay in cache. Batch norm, and the gradients of the others, are float32 for float32
values; `channels` adds them without a loss of digits, and all that is done with its sums is float64. What float32 is
too narrow for, and sums of a few terms, are float64 throughout.
"""

from collections.abc import Sequence
from math import isfinite, prod

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.fast import blocks, tuning
from cnn_lightning.ops.fast.channels import Rows, Runs, channels_of, output, samples, wide
from cnn_lightning.ops.types import Array

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
    """`ops.norm.batch_norm`."""
    expect.channels(x, weight=weight, bias=bias, mean=mean, var=var)
    view = channels_of(x)
    y = view.empty(x)
    means, variances = _statistics_of(x, mean), _statistics_of(x, var)
    inputs, outputs = view.of(x), view.of(y)

    def block(part: slice) -> None:
        at = view.at(part)
        out = centred = outputs[at]
        if mean is None:
            centred, rest = _centre(view, inputs[at], out, means[part], variances[part])
        else:
            rest = _subtract(view, inputs[at], means[part], out)
        scale = _invstd(variances[part], eps)
        if weight is not None:
            scale *= weight[part]
        rest *= scale
        constant = -rest if bias is None else bias[part] - rest
        np.multiply(centred, view.across(scale.astype(centred.dtype)), out=centred)
        np.add(centred, view.across(constant.astype(centred.dtype)), out=out)

    view.run(block, 2)
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
    """`ops.norm.batch_norm_backward`."""
    view = channels_of(x)
    grad_x = view.empty(x) if needs[0] else None
    grad_weight, grad_bias = np.empty(view.c, x.dtype), np.empty(view.c, x.dtype)
    inputs, upstream = view.of(x), view.of(grad_y)
    outputs = None if grad_x is None else view.of(grad_x)

    def block(part: slice) -> None:
        at = view.at(part)
        values, grad = inputs[at], upstream[at]
        out = blocks.scratch("norm centred", values.shape, like=x) if outputs is None else outputs[at]
        rest = _subtract(view, values, mean[part], out)
        invstd = _invstd(var[part], eps)
        total, dot = view.sum(grad), view.dot(grad, out)
        if not isfinite(total.dot(dot)):  # float32 is too narrow, or the gradients are not finite
            grad64, centred = wide("norm gradient", grad), wide("norm values", out)
            total, dot = view.sum(grad64), view.dot(grad64, centred)
        dot -= rest * total
        dot *= invstd
        grad_bias[part], grad_weight[part] = total, dot
        if outputs is None:
            return
        if training:
            _centre_gradient(view, out, grad, invstd, rest, total / view.count, dot / view.count)
            grad = out
        if weight is not None:
            invstd *= weight[part]
        np.multiply(grad, view.across(invstd.astype(x.dtype)), out=out)

    view.run(block, 3)
    return grad_x, grad_weight if needs[1] else None, grad_bias if needs[2] else None


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """`ops.norm.batch_statistics`."""
    view = channels_of(x)
    means, variances = _statistics_of(x, None), _statistics_of(x, None)
    inputs = view.of(x)

    def block(part: slice) -> None:
        values = inputs[view.at(part)]
        _centre(view, values, blocks.scratch("norm centred", values.shape, like=x), means[part], variances[part])

    view.run(block, 2)
    return means, variances


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
    """`ops.norm.batch_norm_backward_part`."""
    view = channels_of(x)
    grad_x = view.empty(x)
    inputs, upstream, outputs = view.of(x), view.of(grad_y), view.of(grad_x)

    def block(part: slice) -> None:
        at = view.at(part)
        out, invstd = outputs[at], _invstd(var[part], eps)
        rest = _subtract(view, inputs[at], mean[part], out)
        _centre_gradient(view, out, upstream[at], invstd, rest, grad_bias[part] / count, grad_weight[part] / count)
        if weight is not None:
            invstd *= weight[part]
        np.multiply(out, view.across(invstd.astype(x.dtype)), out=out)

    view.run(block, 3)
    return grad_x


def _statistics_of(x: Array, given: Array | None) -> Array:
    """Memory for the statistics of each channel, or those given, in float64."""
    return np.empty(x.shape[1], np.float64) if given is None else given.astype(np.float64)


def _invstd(var: Array, eps: float) -> Array:
    result: Array = np.add(var, eps, dtype=np.float64)
    np.sqrt(result, out=result)
    return np.reciprocal(result, out=result)


def _subtract(view: Runs | Rows, x: Array, mean: Array, out: Array) -> Array:
    """Write ``x - mean`` of a block for the mean in the dtype of x; return what this leaves of the mean."""
    shift = mean.astype(x.dtype)
    np.subtract(x, view.across(shift), out=out)
    rest: Array = mean - shift
    return rest


def _centre(view: Runs | Rows, x: Array, out: Array, means: Array, variances: Array) -> tuple[Array, Array]:
    """Write ``x - shift`` of a block, and its statistics; return where it is and ``rest``, ``mean - shift``.

    It is in ``out``, or in float64 in scratch memory where float32 is too narrow. ``shift`` is the mean as far as its
    sum in float32 is exact. The variance is the mean of squares less the square of ``rest``, of which a large mean is
    no part any more.
    """
    np.divide(view.sum(x), view.count, out=means)
    if x.dtype == np.float64:
        np.subtract(x, view.across(means), out=out)
        np.divide(view.dot(out, out), view.count, out=variances)
        return out, np.zeros(len(means))
    shift = means.astype(x.dtype)
    np.subtract(x, view.across(shift), out=out)
    rest, var = view.sum(out), view.dot(out, out)
    rest /= view.count
    var /= view.count
    var -= rest * rest
    if not isfinite(var.dot(var)):
        values = wide("norm values", x)
        return _centre(view, values, values, means, variances)
    np.maximum(var, 0, out=variances)
    square = means * means
    # Beside a small mean, the subtraction rounds by more than the first sum did.
    np.add(shift, rest, out=means, where=square > var)
    is_tiny = square < 1e-6 * variances
    if is_tiny.any():  # less than a thousandth of the deviation: sums in float32 leave it few digits
        np.divide(view.sum(wide("norm values", x)), view.count, out=means, where=is_tiny)
    return out, rest


def _centre_gradient(
    view: Runs | Rows, out: Array, grad: Array, invstd: Array, rest: Array, of_grad: Array, of_dot: Array
) -> None:
    """``grad_y - mean(grad_y) - xhat * mean(grad_y * xhat)`` of a block, from those means, over ``x - shift``."""
    slope = of_dot * invstd
    constant = slope * rest
    constant -= of_grad
    np.multiply(out, view.across(np.negative(slope, dtype=out.dtype, casting="same_kind")), out=out)
    np.add(out, view.across(constant.astype(out.dtype)), out=out)
    np.add(out, grad, out=out)


def layer_norm(
    x: Array, weight: Array | None, bias: Array | None, *, axes: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """`ops.norm.layer_norm`."""
    expect.layer_norm(x, weight, bias, axes)
    outer, inner = x.shape[: x.ndim - axes], x.shape[x.ndim - axes :]
    n, size = prod(outer), prod(inner)
    weight, bias = (None if array is None else array.reshape(size) for array in (weight, bias))
    y, *statistics = group_norm(x.reshape(n, size), weight, bias, groups=1, eps=eps)
    mean, var = (array.reshape(*outer, *(1,) * axes) for array in statistics)
    return y.reshape(x.shape), mean, var


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
    """`ops.norm.layer_norm_backward`."""
    inner = x.shape[x.ndim - axes :]
    n, size = prod(x.shape[: x.ndim - axes]), prod(inner)
    grad_x, *gradients = group_norm_backward(
        grad_y.reshape(n, size),
        x.reshape(n, size),
        None if weight is None else weight.reshape(size),
        mean.reshape(n, 1, 1),
        var.reshape(n, 1, 1),
        groups=1,
        eps=eps,
        needs=needs,
    )
    grad_weight, grad_bias = (None if gradient is None else gradient.reshape(inner) for gradient in gradients)
    return None if grad_x is None else grad_x.reshape(x.shape), grad_weight, grad_bias


def group_norm(
    x: Array, weight: Array | None, bias: Array | None, *, groups: int, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """`ops.norm.group_norm`."""
    expect.group_norm(x, weight, bias, groups)
    n, c, length = x.shape[0], x.shape[1], prod(x.shape[2:])
    y = output(x)
    mean, var = np.empty((n, groups, 1)), np.empty((n, groups, 1))
    weight, bias = (None if array is None else array.astype(np.float64)[:, None] for array in (weight, bias))
    inputs, outputs = samples(x), samples(y)

    def block(part: slice) -> None:
        values = wide("norm values", inputs[part])
        rows, view = _rows(values, groups)
        _centre(view, rows, rows, mean[part].reshape(-1), var[part].reshape(-1))
        rows *= view.across(_invstd(var[part].reshape(-1), eps))
        if weight is not None:
            values *= weight
        if bias is not None:
            values += bias
        outputs[part] = values

    blocks.run(block, blocks.blocks(n, c * length * (8 + 2 * x.itemsize)))
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
    """`ops.norm.group_norm_backward`."""
    n, c, length = x.shape[0], x.shape[1], prod(x.shape[2:])
    grad_x = output(x) if needs[0] else None
    inputs, upstream = samples(x), samples(grad_y)
    outputs = None if grad_x is None else samples(grad_x)

    is_many = n * length > tuning.TUNING.norm_rows  # in sums of a few terms, the errors of float32 do not cancel

    def block(part: slice) -> tuple[Array, ...]:
        statistics = mean[part].reshape(-1), _invstd(var[part].reshape(-1), eps)
        to_x = None if outputs is None else outputs[part]
        if is_many:
            values, grad = np.ascontiguousarray(inputs[part]), np.ascontiguousarray(upstream[part])
            out = to_x
            if out is None or not out.flags.c_contiguous:
                out = blocks.scratch("norm centred", values.shape, like=x)
            sums = _group_gradients(grad, values, weight, *statistics, groups, out)
        if not is_many or not all(isfinite(each.dot(each)) for each in sums):
            grad, out = wide("norm gradient", upstream[part]), wide("norm values", inputs[part])
            sums = _group_gradients(grad, out, weight, *statistics, groups, out)
        if to_x is not None and out is not to_x:
            to_x[...] = out
        return sums

    sums = blocks.run(block, blocks.blocks(n, 4 * c * length * x.itemsize))
    grad_weight, grad_bias = (sum((each[i] for each in sums), np.zeros(c)).astype(x.dtype) for i in range(2))
    return grad_x, grad_weight if needs[1] else None, grad_bias if needs[2] else None


def _group_gradients(
    grad: Array, x: Array, weight: Array | None, mean: Array, invstd: Array, groups: int, out: Array
) -> tuple[Array, ...]:
    """Write ``grad_x`` of a block of samples (n, c, L) to ``out``, which may be x.

    Returns:
        ``grad_weight``, ``grad_bias``, and the sums of ``g`` and ``g * xhat`` of each row.
    """
    rows, view = _rows(x, groups)
    out_rows = out.reshape(rows.shape)
    rest = _subtract(view, rows, mean, out_rows)
    np.multiply(out_rows, view.across(invstd.astype(out.dtype)), out=out_rows)
    np.subtract(out_rows, view.across((rest * invstd).astype(out.dtype)), out=out_rows)
    channels = channels_of(x)
    grads = channels.of(grad)
    of_weight, of_bias = channels.dot(grads, channels.of(out)), channels.sum(grads)
    if weight is not None:
        scaled = blocks.scratch("norm scaled gradient", grad.shape, like=grad)
        grad = np.multiply(grad, weight[:, None], out=scaled)
    grad_rows = grad.reshape(rows.shape)
    of_grad, of_dot = view.sum(grad_rows), view.dot(grad_rows, out_rows)
    np.multiply(out_rows, view.across((of_dot / -view.count).astype(out.dtype)), out=out_rows)
    np.add(out_rows, grad_rows, out=out_rows)
    np.subtract(out_rows, view.across((of_grad / view.count).astype(out.dtype)), out=out_rows)
    np.multiply(out_rows, view.across(invstd.astype(out.dtype)), out=out_rows)
    return of_weight, of_bias, of_grad, of_dot


def _rows(x: Array, groups: int) -> tuple[Array, Runs | Rows]:
    """Samples (n, c, L) as a single one whose channels are their groups, in the form that is returned with it."""
    n, c, length = x.shape
    x = x.reshape(1, n * groups, c // groups * length)
    view = channels_of(x)
    return view.of(x), view


def instance_norm(
    x: Array, weight: Array | None, bias: Array | None, *, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """`ops.norm.instance_norm`."""
    expect.channels(x, weight=weight, bias=bias)
    return group_norm(x, weight, bias, groups=x.shape[1], eps=eps)


def instance_norm_backward(
    grad_y: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    var: Array,
    *,
    eps: float = 1e-5,
    needs: Sequence[bool] = (True, True, True),
) -> Gradients:
    """`ops.norm.instance_norm_backward`."""
    return group_norm_backward(grad_y, x, weight, mean, var, groups=x.shape[1], eps=eps, needs=needs)


def rms_norm(x: Array, weight: Array | None, *, axes: int = 1, eps: float | None = None) -> tuple[Array, Array]:
    """`ops.norm.rms_norm`."""
    expect.rms_norm(x, weight, axes)
    eps = float(np.finfo(x.dtype).eps) if eps is None else eps
    outer, size = x.shape[: x.ndim - axes], prod(x.shape[x.ndim - axes :])
    rows, y, rms = x.reshape(prod(outer), size), blocks.empty(x.shape, like=x), np.empty(prod(outer))
    outputs, factor = y.reshape(rows.shape), None if weight is None else weight.reshape(size)

    def block(part: slice) -> None:
        values = wide("norm values", rows[part])
        np.sqrt(np.vecdot(values, values) / max(1, size) + eps, out=rms[part])
        values /= rms[part, None]
        if factor is not None:
            values *= factor
        outputs[part] = values

    blocks.run(block, blocks.blocks(len(rows), size * (8 + 2 * x.itemsize)))
    return y, rms.reshape(*outer, *(1,) * axes)


def rms_norm_backward(
    grad_y: Array,
    x: Array,
    weight: Array | None,
    rms: Array,
    *,
    axes: int = 1,
    needs: Sequence[bool] = (True, True),
) -> tuple[Array | None, Array | None]:
    """`ops.norm.rms_norm_backward`."""
    inner = x.shape[x.ndim - axes :]
    size, roots = prod(inner), rms.reshape(-1, 1)
    rows, upstream = x.reshape(len(roots), size), grad_y.reshape(len(roots), size)
    grad_x = blocks.empty(x.shape, like=x) if needs[0] else None
    outputs = None if grad_x is None else grad_x.reshape(rows.shape)
    factor = None if weight is None else weight.reshape(size)

    def block(part: slice) -> Array:
        xhat, g = wide("norm values", rows[part]), wide("norm gradient", upstream[part])
        xhat /= roots[part]
        of_weight = np.vecdot(g.T, xhat.T) if needs[1] else np.zeros(0)
        if outputs is not None:
            if factor is not None:
                g *= factor
            xhat *= (np.vecdot(g, xhat) / max(1, size))[:, None]
            g -= xhat
            np.divide(g, roots[part], out=outputs[part], casting="same_kind")
        return of_weight

    sums = blocks.run(block, blocks.blocks(len(rows), size * (16 + 3 * x.itemsize)))
    return grad_x, sum(sums, np.zeros(size)).astype(x.dtype).reshape(inner) if needs[1] else None
