"""Normalisation: subtract a mean, divide by a standard deviation, then scale and shift.

The three differ in the values that have common statistics: a channel over the batch (`batch_norm`), the last axes of a
sample (`layer_norm`), a group of channels of a sample (`group_norm`). All have the same gradient. With ``xhat = (x -
mean) * invstd``, ``y = weight * xhat + bias`` and ``g = grad_y * weight``, means taken over the values with common
statistics::

    grad_x      = invstd * (g - mean(g) - xhat * mean(g * xhat))
    grad_weight = sum of grad_y * xhat
    grad_bias   = sum of grad_y

as in S. Ioffe and C. Szegedy, "Batch normalization", https://arxiv.org/abs/1502.03167, section 3.

Statistics are computed in float64, in two passes over a block of values that stays in cache, so that neither a large
mean nor a long sum loses digits.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.fast import blocks, tuning
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
    y = _output(x)
    means, variances = (np.empty_like(x, shape=(x.shape[1],), dtype=np.float64) for _ in range(2))
    view = _Channels(x)
    count = max(1, view.count)
    x, to_y = view.of(x), view.of(y)

    def block(part: slice) -> None:
        part = view.channels(part)
        at = view.at(part)
        values = _wide("norm values", x[at])
        means[part] = view.sum(values) / count if mean is None else mean[part]
        values -= view.across(means[part])
        variances[part] = view.dot(values, values) / count if var is None else var[part]
        scale = _invstd(variances[part], eps)
        values *= view.across(scale if weight is None else scale * weight[part])
        if bias is not None:
            values += view.across(bias[part].astype(np.float64))
        to_y[at] = values

    view.run(block, 4 * 8)
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
    grad_x = _output(x) if needs[0] else None
    grad_weight, grad_bias = (np.empty_like(x, shape=(x.shape[1],)) for _ in range(2))
    view = _Channels(x)
    x, upstream = view.of(x), view.of(grad_y)
    to_x = None if grad_x is None else view.of(grad_x)
    count, rule = max(1, view.count), _Rule(view, weight, mean, var, eps, x.dtype)

    def block(part: slice) -> None:
        part = view.channels(part)
        at = view.at(part)
        grad, centred = upstream[at], rule.centred(x[at], part)
        wide = _wide("norm gradient", grad)
        total, dot = view.sum(wide), view.dot(wide, _wide("norm values", centred))
        dot = (dot - rule.rest[part] * total) * rule.invstd[part]
        grad_bias[part], grad_weight[part] = total, dot
        if to_x is None:
            return
        if training:
            rule.write(to_x[at], grad, centred, part, total / count, dot / count)
        else:
            np.multiply(grad, view.across(rule.scale[part]), out=to_x[at])

    view.run(block, 8 * x.itemsize)
    return grad_x, grad_weight if needs[1] else None, grad_bias if needs[2] else None


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """`ops.norm.batch_statistics`."""
    means, variances = (np.empty_like(x, shape=(x.shape[1],), dtype=np.float64) for _ in range(2))
    view = _Channels(x)
    count = max(1, view.count)
    x = view.of(x)

    def block(part: slice) -> None:
        part = view.channels(part)
        values = _wide("norm values", x[view.at(part)])
        means[part] = view.sum(values) / count
        values -= view.across(means[part])
        variances[part] = view.dot(values, values) / count

    view.run(block, 4 * 8)
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
    grad_x = _output(x)
    view = _Channels(x)
    x, upstream, to_x = view.of(x), view.of(grad_y), view.of(grad_x)
    rule = _Rule(view, weight, mean, var, eps, x.dtype)

    def block(part: slice) -> None:
        part = view.channels(part)
        at = view.at(part)
        centred = rule.centred(x[at], part)
        rule.write(to_x[at], upstream[at], centred, part, grad_bias[part] / count, grad_weight[part] / count)

    view.run(block, 4 * x.itemsize)
    return grad_x


class _Rule:
    """``grad_x = scale * (grad_y - mean(grad_y) - xhat * mean(grad_y * xhat))``, in the dtype of x."""

    def __init__(
        self, view: "_Channels", weight: Array | None, mean: Array, var: Array, eps: float, dtype: Any
    ) -> None:
        self.view, self.dtype = view, dtype
        with np.errstate(all="ignore"):
            self.invstd = _invstd(var, eps)
            self.scale = (self.invstd if weight is None else self.invstd * weight).astype(dtype)
            self.mean = mean.astype(dtype)
            self.rest = mean - self.mean  # the rounding error of float32

    def centred(self, x: Array, part: slice) -> Array:
        """``x - mean`` in scratch memory, for the rounded mean: without its rounding error, `rest`."""
        result = blocks.scratch("norm centred", x.shape, like=x)
        np.subtract(x, self.view.across(self.mean[part]), out=result)
        return result

    def write(self, out: Array, grad: Array, centred: Array, part: slice, of_grad: Array, of_dot: Array) -> None:
        """``grad_x`` of a block from the means of ``grad`` and of ``grad * xhat``; overwrites ``centred``."""
        slope = of_dot * self.invstd[part]
        constant = of_grad - slope * self.rest[part]
        centred *= self.view.across((-slope).astype(self.dtype))
        centred -= self.view.across(constant.astype(self.dtype))
        centred += grad
        np.multiply(centred, self.view.across(self.scale[part]), out=out)


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
    size = c // groups * length
    y = _output(x)
    mean, var = (np.empty_like(x, shape=(n, groups, 1), dtype=np.float64) for _ in range(2))
    weight, bias = (None if array is None else array.astype(np.float64)[:, None] for array in (weight, bias))
    x, to_y = _samples(x), _samples(y)

    def block(part: slice) -> None:
        values = _wide("norm values", x[part])
        rows = values.reshape(values.shape[0], groups, size)
        mean[part] = _row_sums(rows) / size
        rows -= mean[part]
        var[part] = _row_dots(rows, rows) / size
        rows *= _invstd(var[part], eps)
        if weight is not None:
            values *= weight
        if bias is not None:
            values += bias
        to_y[part] = values

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
    size = c // groups * length
    grad_x = _output(x) if needs[0] else None
    x, upstream = _samples(x), _samples(grad_y)
    to_x = None if grad_x is None else _samples(grad_x)
    mean, scale = mean.astype(np.float64), None if weight is None else weight.astype(np.float64)[:, None]

    def block(part: slice) -> tuple[Array, Array]:
        g, xhat = _wide("norm gradient", upstream[part]), _wide("norm values", x[part])
        g_rows, rows = (array.reshape(array.shape[0], groups, size) for array in (g, xhat))
        invstd = _invstd(var[part], eps)
        rows -= mean[part]
        rows *= invstd
        sums = _channel_dots(g, xhat), _channel_sums(g)
        if to_x is not None:
            if scale is not None:
                g *= scale
            rows *= _row_dots(rows, g_rows) / -size
            rows -= _row_sums(g_rows) / size
            rows += g_rows
            rows *= invstd
            to_x[part] = xhat
        return sums

    sums = blocks.run(block, blocks.blocks(n, c * length * (16 + 3 * x.itemsize)))
    grad_weight, grad_bias = (np.zeros_like(x, shape=(c,), dtype=np.float64) for _ in range(2))
    for of_weight, of_bias in sums:
        grad_weight += of_weight
        grad_bias += of_bias
    return grad_x, grad_weight.astype(x.dtype) if needs[1] else None, grad_bias.astype(x.dtype) if needs[2] else None


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


# ---- the channels of a batch in memory


class _Channels:
    """A batch (N, C, ...) as three axes without a copy: (N, C, L), or (rows, f, C) if channels are last in memory.

    In the second form, a row has ``f`` pixels, as many as NumPy needs to be fast.
    """

    def __init__(self, x: Array) -> None:
        n, self.c, length = x.shape[0], x.shape[1], prod(x.shape[2:])
        self.count = n * length
        self.last = _is_channels_last(x)
        self.side = 1
        if self.last:
            row = 2 * tuning.TUNING.norm_long_run
            while self.count % (2 * self.side) == 0 and self.count and self.side * self.c < row:
                self.side *= 2
        self.shape = (self.count // self.side, self.side, self.c) if self.last else (n, self.c, length)
        # Channels that are adjacent in memory stay in one block.
        self.together = tuning.TUNING.norm_neighbours if self.last else 1
        self.nbytes = x.nbytes

    def of(self, a: Array) -> Array:
        """``a``, of the shape of the batch, in this form; a copy if its order in memory is another one."""
        return (np.moveaxis(a, 1, -1) if self.last else a).reshape(self.shape)

    def run(self, block: Callable[[slice], None], value_bytes: int) -> None:
        """``block`` for every block of channels, as `at` and `channels` take it."""
        numbers = tuning.TUNING
        parallel = self.nbytes >= numbers.norm_threads_bytes
        # Each long run is summed separately, so that the sums do not depend on the blocks.
        any_cut = not self.last and self.shape[2] >= numbers.norm_run
        if parallel and any_cut and blocks.get_num_threads() > 1:
            value_bytes //= numbers.norm_larger
        parts = blocks.blocks(-(-self.c // self.together), self.together * self.count * value_bytes)
        blocks.run(block, parts, parallel=parallel)

    def channels(self, part: slice) -> slice:
        """The channels of a block."""
        return slice(part.start * self.together, min(self.c, part.stop * self.together))

    def at(self, part: slice) -> tuple[slice, ...]:
        """The index of a block of channels."""
        return (slice(None), slice(None), part) if self.last else (slice(None), part)

    def across(self, values: Array) -> Array:
        """One value per channel of a block, as an array that broadcasts to the block."""
        if self.last:
            shape = (self.side, *values.shape)
        elif self.shape[2] < tuning.TUNING.norm_long_run:
            values, shape = values[:, None], (*values.shape, self.shape[2])
        else:
            return values[:, None]
        result = np.empty_like(values, shape=shape)
        result[...] = values
        return result

    def sum(self, a: Array) -> Array:
        """The sum of each channel over a block of float64."""
        return _channel_sums(self._middle(a))

    def dot(self, a: Array, b: Array) -> Array:
        """The sum of products of each channel."""
        return _channel_dots(self._middle(a), self._middle(b))

    def _middle(self, a: Array) -> Array:
        return a.reshape(self.count, a.shape[2], 1) if self.last else a


def _is_channels_last(x: Array) -> bool:
    """Whether channels are adjacent in memory and the array is contiguous otherwise; also for (N, C)."""
    if x.flags.c_contiguous and x.ndim > 2:
        return False
    return bool(np.moveaxis(x, 1, -1).flags.c_contiguous)


def _samples(a: Array) -> Array:
    """(N, C, ...) as (N, C, L), without a copy also if channels are last in memory."""
    n, c, length = a.shape[0], a.shape[1], prod(a.shape[2:])
    if length > 1 and _is_channels_last(a):
        return np.moveaxis(a, 1, -1).reshape(n, length, c).swapaxes(1, 2)
    return a.reshape(n, c, length)


def _output(x: Array) -> Array:
    """A new array like ``x`` of which `_Channels` of ``x`` makes a view."""
    return blocks.empty_like(x) if _is_channels_last(x) else blocks.empty(x.shape, like=x)


def _wide(name: str, x: Array) -> Array:
    """A copy in float64, in scratch memory."""
    values = blocks.scratch(name, x.shape, like=x, dtype=np.float64)
    values[...] = x
    return values


# ---- sums, all of float64


def _channel_sums(a: Array) -> Array:
    """(n, c, L) to (c,)."""
    n, c, length = a.shape
    if length >= tuning.TUNING.norm_run:
        return _over_samples(_row_sums(a))
    columns = np.matmul(np.ones_like(a, shape=(n,)), a.reshape(n, c * length))
    result: Array = np.matmul(columns.reshape(c, length), np.ones_like(a, shape=(length,)))
    return result


def _channel_dots(a: Array, b: Array) -> Array:
    """(n, c, L) and the same to (c,): the sum of products of each channel."""
    if a.shape[2] >= tuning.TUNING.norm_run:
        return _over_samples(_row_dots(a, b))
    product = blocks.scratch("norm product", a.shape, like=a)
    np.multiply(a, b, out=product)
    return _channel_sums(product)


def _over_samples(runs: Array) -> Array:
    """(n, c, 1) to (c,), with the runs of a channel adjacent: else NumPy adds a single channel in another order."""
    side_by_side = np.empty_like(runs, shape=(runs.shape[1], runs.shape[0]))
    side_by_side[...] = runs[:, :, 0].T
    result: Array = side_by_side.sum(1)
    return result


def _row_sums(a: Array) -> Array:
    """(n, r, m) to (n, r, 1). One product for each row, so that rounding does not depend on the number of rows."""
    return _row_dots(a, np.ones_like(a, shape=(1, 1, a.shape[2])))


def _row_dots(a: Array, b: Array) -> Array:
    """(n, r, m) and the same to (n, r, 1): the sum of products of each row."""
    result: Array = np.matmul(a[:, :, None, :], b[:, :, :, None])[:, :, :, 0]
    return result


def _invstd(var: Array, eps: float) -> Array:
    result: Array = 1 / np.sqrt(var.astype(np.float64) + eps)
    return result
