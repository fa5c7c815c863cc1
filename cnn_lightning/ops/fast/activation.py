"""Elementwise activations: forward and backward pairs.

``x`` and ``grad_y`` may have any shape; results have the shape and dtype of ``x``, and its memory layout or (some
gradients, as in torch) that of ``grad_y``. Values and gradients at kinks, infinities and NaN are torch's. (Its
vectorised and its scalar code differ in the gradient of relu6, elu and hardswish at NaN. Here it is that of the scalar
code, which its GPU code has, too.)

The functions are written for runs of values and run on blocks of the memory, in the order in which the values lie
there, so that their intermediate results stay in cache, whatever the memory format.

Those with an option ``out`` can write their result to an array like ``x``, which may be ``x`` itself.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.activation import ONE_SIXTH, SELU_ALPHA, SELU_SCALE
from cnn_lightning.ops.fast import blocks, tuning
from cnn_lightning.ops.fast.special import BITS, keep_where, normal, precise
from cnn_lightning.ops.types import Array


def relu(x: Array, *, out: Array | None = None) -> Array:
    """`ops.activation.relu`."""
    expect.dtype("relu: x", x, "fiu")
    return _blockwise(_relu, x, out=out)


def relu_backward(grad_y: Array, x: Array) -> Array:
    """`ops.activation.relu_backward`."""
    return _blockwise(lambda x, grad_y, grad_x: _zero(_at_most(x, 0), grad_y, out=grad_x), x, grad_y)


def relu6(x: Array, *, out: Array | None = None) -> Array:
    """`ops.activation.relu6`."""
    expect.dtype("relu6: x", x, "fiu")
    return _blockwise(lambda x, y: x.clip(0, 6, out=y), x, out=out)


def relu6_backward(grad_y: Array, x: Array) -> Array:
    """`ops.activation.relu6_backward`."""
    return _blockwise(lambda grad_y, x, grad_x: _zero(_outside(x, 0, 6), grad_y, out=grad_x), grad_y, x)


def hardtanh(x: Array, *, min_val: float = -1.0, max_val: float = 1.0, out: Array | None = None) -> Array:
    """`ops.activation.hardtanh`."""
    low, high = expect.hardtanh(x, min_val, max_val)
    return _blockwise(lambda x, y: x.clip(low, high, out=y), x, out=out)


def hardtanh_backward(grad_y: Array, x: Array, *, min_val: float = -1.0, max_val: float = 1.0) -> Array:
    """`ops.activation.hardtanh_backward`."""
    return _blockwise(lambda grad_y, x, grad_x: _zero(_outside(x, min_val, max_val), grad_y, out=grad_x), grad_y, x)


def threshold(x: Array, *, threshold: float, value: float, out: Array | None = None) -> Array:
    """`ops.activation.threshold`."""
    at, constant = expect.limits("threshold", x, threshold=threshold, value=value)

    def formula(x: Array, y: Array) -> None:
        below = _at_most(x, at)
        np.copyto(y, x)
        _choose(below, np.full_like(x, constant), out=y)

    return _blockwise(formula, x, out=out)


def threshold_backward(grad_y: Array, x: Array, *, threshold: float, value: float) -> Array:
    """`ops.activation.threshold_backward`."""
    return _blockwise(lambda x, grad_y, grad_x: _zero(_at_most(x, threshold), grad_y, out=grad_x), x, grad_y)


def leaky_relu(x: Array, *, negative_slope: float = 0.01, out: Array | None = None) -> Array:
    """`ops.activation.leaky_relu`."""
    expect.dtype("leaky_relu: x", x)
    expect.number("leaky_relu: negative_slope", negative_slope)
    if 0 < negative_slope <= 1:  # the larger one is the choice below
        return _blockwise(lambda x, y: np.maximum(x, np.multiply(x, negative_slope, out=_like(x)), out=y), x, out=out)
    return _blockwise(lambda x, y: _leaky(x, negative_slope, y), x, out=out, reads_twice=True)


def leaky_relu_backward(grad_y: Array, x: Array, *, negative_slope: float = 0.01) -> Array:
    """`ops.activation.leaky_relu_backward`."""
    return _blockwise(lambda x, grad_y, grad_x: _leaky_backward(x, negative_slope, grad_y, grad_x), x, grad_y)


def prelu(x: Array, weight: Array) -> Array:
    """`ops.activation.prelu`."""
    return _blockwise(_leaky, x, _slope(x, weight))


def prelu_backward(
    grad_y: Array, x: Array, weight: Array, *, needs: tuple[bool, bool] = (True, True)
) -> tuple[Array | None, Array | None]:
    """`ops.activation.prelu_backward`."""
    slope = _slope(x, weight)
    grad_x = grad_weight = None
    if needs[0]:
        grad_x = _blockwise(_leaky_backward, x, slope, grad_y)
    if needs[1]:
        products = _blockwise(lambda x, grad_y, out: _zero(x > 0, grad_y * x, out=out), x, grad_y)
        axes = tuple(axis for axis in range(x.ndim) if weight.size == 1 or axis != 1)
        grad_weight = products.sum(axis=axes).reshape(weight.shape)
    return grad_x, grad_weight


def elu(x: Array, *, alpha: float = 1.0, out: Array | None = None) -> Array:
    """`ops.activation.elu`."""
    expect.dtype("elu: x", x)
    expect.number("elu: alpha", alpha)

    def formula(x: Array, y: Array) -> None:
        precise(np.expm1, x, out=y)
        np.multiply(y, alpha, out=y)
        _choose(x > 0, x, out=y)

    return _blockwise(formula, x, out=out, passes=2, reads_twice=True)


def elu_backward(grad_y: Array, x: Array, *, alpha: float = 1.0) -> Array:
    """`ops.activation.elu_backward`."""

    def formula(grad_y: Array, x: Array) -> Array:
        grad_x = np.minimum(x, 0)
        np.exp(grad_x, out=grad_x)
        grad_x *= alpha
        grad_x *= grad_y
        _choose(~(x <= 0), grad_y, out=grad_x)
        return grad_x

    return _precise(formula, grad_y, x)


def elu_backward_from_output(grad_y: Array, y: Array, *, alpha: float = 1.0) -> Array:
    """`ops.activation.elu_backward_from_output`."""

    def formula(grad_y: Array, y: Array, grad_x: Array) -> None:
        np.multiply(grad_y, y + alpha, out=grad_x)
        _choose(~(y <= 0), grad_y, out=grad_x)

    return _blockwise(formula, grad_y, y)


def selu(x: Array, *, out: Array | None = None) -> Array:
    """`ops.activation.selu`."""
    expect.dtype("selu: x", x)

    def formula(x: Array, y: Array) -> None:
        precise(np.expm1, x, out=y)
        np.multiply(y, SELU_SCALE * SELU_ALPHA, out=y)
        _choose(x > 0, SELU_SCALE * x, out=y)

    return _blockwise(formula, x, out=out, passes=2, reads_twice=True)


def selu_backward(grad_y: Array, x: Array) -> Array:
    """`ops.activation.selu_backward`."""

    def formula(grad_y: Array, x: Array) -> Array:
        grad_x = np.minimum(x, 0)
        np.exp(grad_x, out=grad_x)
        grad_x *= SELU_SCALE * SELU_ALPHA
        _choose(~(x <= 0), np.full_like(x, SELU_SCALE), out=grad_x)
        grad_x *= grad_y
        return grad_x

    return _precise(formula, grad_y, x)


def selu_backward_from_output(grad_y: Array, y: Array) -> Array:
    """`ops.activation.selu_backward_from_output`."""

    def formula(grad_y: Array, y: Array, grad_x: Array) -> None:
        np.multiply(grad_y, y + SELU_SCALE * SELU_ALPHA, out=grad_x)
        _choose(~(y <= 0), SELU_SCALE * grad_y, out=grad_x)

    return _blockwise(formula, grad_y, y)


def celu(x: Array, *, alpha: float = 1.0, out: Array | None = None) -> Array:
    """`ops.activation.celu`."""
    expect.celu(x, alpha)

    def formula(x: Array) -> Array:
        y = np.minimum(x, 0)
        y /= alpha
        np.expm1(y, out=y)
        y *= alpha
        _choose(x > 0, x, out=y)
        return y

    return _precise(formula, x, out=out)


def celu_backward(grad_y: Array, x: Array, *, alpha: float = 1.0) -> Array:
    """`ops.activation.celu_backward`."""
    inverse = 1 / float(np.float32(alpha))

    def formula(grad_y: Array, x: Array) -> Array:
        grad_x = np.minimum(x, 0)
        grad_x *= inverse
        np.exp(grad_x, out=grad_x)
        grad_x *= inverse * alpha
        grad_x *= grad_y
        _choose(~(x <= 0), grad_y, out=grad_x)
        return grad_x

    return _precise(formula, grad_y, x)


def celu_backward_from_output(grad_y: Array, y: Array, *, alpha: float = 1.0) -> Array:
    """`ops.activation.celu_backward_from_output`."""
    inverse = 1 / float(np.float32(alpha))

    def formula(grad_y: Array, y: Array, grad_x: Array) -> None:
        np.multiply(grad_y * inverse, y + alpha, out=grad_x)
        _choose(~(y <= 0), grad_y, out=grad_x)

    return _blockwise(formula, grad_y, y)


def gelu(x: Array, *, approximate: str = "none") -> Array:
    """`ops.activation.gelu`."""
    expect.dtype("gelu: x", x)
    distribution = _distribution(approximate)
    return _rounded(lambda x: distribution(x)[0] * x.astype(np.float64, copy=False), x)


def gelu_backward(grad_y: Array, x: Array, *, approximate: str = "none") -> Array:
    """`ops.activation.gelu_backward`."""
    distribution = _distribution(approximate)

    def formula(x: Array, grad_y: Array) -> Array:
        p, density = distribution(x)
        density *= x.astype(np.float64, copy=False)
        density += p
        density *= grad_y.astype(np.float64, copy=False)
        return density

    return _rounded(formula, x, grad_y)


def silu(x: Array, *, out: Array | None = None) -> Array:
    """`ops.activation.silu`."""
    expect.dtype("silu: x", x)
    return _blockwise(lambda x, y: np.divide(x, _one_and_exp(x, _like(x)), out=y), x, out=out, passes=2)


def silu_backward(grad_y: Array, x: Array) -> Array:
    """`ops.activation.silu_backward`."""

    def formula(grad_y: Array, x: Array, grad_x: Array) -> None:
        s = _sigmoid(x, _like(x))
        np.subtract(1, s, out=grad_x)
        np.multiply(grad_x, x, out=grad_x)
        np.add(grad_x, 1, out=grad_x)
        np.multiply(grad_x, np.multiply(grad_y, s, out=s), out=grad_x)

    return _blockwise(formula, grad_y, x, passes=3)


def mish(x: Array, *, out: Array | None = None) -> Array:
    """`ops.activation.mish`."""
    expect.dtype("mish: x", x)
    return _precise(lambda x: x * _tanh_softplus(x)[0], x, out=out)


def mish_backward(grad_y: Array, x: Array) -> Array:
    """`ops.activation.mish_backward`."""

    def formula(grad_y: Array, x: Array) -> Array:
        t, s = _tanh_softplus(x)
        s *= x * (1 - t * t)
        s += t
        s *= grad_y
        return s

    return _precise(formula, grad_y, x)


def softplus(x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """`ops.activation.softplus`."""
    expect.dtype("softplus: x", x)
    expect.number("softplus: beta", beta)
    expect.number("softplus: threshold", threshold)

    def formula(x: Array) -> Array:
        z = beta * x
        y = np.abs(z)
        np.negative(y, out=y)
        np.log1p(np.exp(y, out=y), out=y)
        y += np.maximum(z, 0)
        y *= 1 / beta if beta else math.inf
        _choose(z > threshold, x, out=y)
        return y

    return _precise(formula, x)


def softplus_backward(grad_y: Array, x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """`ops.activation.softplus_backward`."""

    def formula(grad_y: Array, x: Array) -> Array:
        z = beta * x
        grad_x = _sigmoid(z, np.empty_like(z))
        grad_x *= grad_y
        _choose(z > threshold, grad_y, out=grad_x)
        return grad_x

    return _precise(formula, grad_y, x)


def hardswish(x: Array, *, out: Array | None = None) -> Array:
    """`ops.activation.hardswish`."""
    expect.dtype("hardswish: x", x)

    def formula(x: Array, y: Array) -> None:
        np.multiply(x, _up_to_six(x, _like(x)), out=y)
        np.divide(y, 6, out=y)

    return _blockwise(formula, x, out=out)


def hardswish_backward(grad_y: Array, x: Array) -> Array:
    """`ops.activation.hardswish_backward`."""

    def formula(x: Array, grad_y: Array, grad_x: Array) -> None:
        below = np.multiply(np.add(np.divide(x, 3, out=_like(x)), 0.5, out=_like(x)), grad_y, out=_like(x))
        _choose(~(x < 3), grad_y, out=below)
        _zero(_at_most(x, -3), below, out=grad_x)

    return _blockwise(formula, x, grad_y)


def hardsigmoid(x: Array, *, out: Array | None = None) -> Array:
    """`ops.activation.hardsigmoid`."""
    expect.dtype("hardsigmoid: x", x)

    return _blockwise(lambda x, y: np.divide(_up_to_six(x, y), 6, out=y), x, out=out)


def hardsigmoid_backward(grad_y: Array, x: Array) -> Array:
    """`ops.activation.hardsigmoid_backward`."""

    def formula(grad_y: Array, x: Array, grad_x: Array) -> None:
        within = np.greater(x, -3, out=_like(x, "mask", bool))
        np.logical_and(within, x < 3, out=within)
        keep_where(within, np.multiply(grad_y, ONE_SIXTH, out=_like(x)), out=grad_x)

    return _blockwise(formula, grad_y, x)


def sigmoid(x: Array) -> Array:
    """`ops.activation.sigmoid`."""
    expect.dtype("sigmoid: x", x)
    return _blockwise(_sigmoid, x, passes=2)


def sigmoid_backward(grad_y: Array, y: Array) -> Array:
    """`ops.activation.sigmoid_backward`."""
    return _blockwise(_sigmoid_backward, grad_y, y)


def logsigmoid(x: Array) -> Array:
    """`ops.activation.logsigmoid`."""
    expect.dtype("logsigmoid: x", x)

    def formula(x: Array) -> Array:
        y = np.abs(x)
        np.negative(y, out=y)
        np.log1p(np.exp(y, out=y), out=y)
        return np.subtract(np.minimum(x, 0), y, out=y)

    return _precise(formula, np.ascontiguousarray(x).reshape(x.shape))  # contiguous, as torch gives it


def logsigmoid_backward(grad_y: Array, x: Array) -> Array:
    """`ops.activation.logsigmoid_backward`."""

    def formula(grad_y: Array, x: Array) -> Array:
        e = np.exp(x)
        e += 1
        return np.divide(grad_y, e, out=e)

    return _precise(formula, grad_y, x)


def softsign(x: Array) -> Array:
    """`ops.activation.softsign`."""
    expect.dtype("softsign: x", x)

    def formula(x: Array, y: Array) -> None:
        np.add(np.abs(x, out=y), 1, out=y)
        np.divide(x, y, out=y)

    return _blockwise(formula, x)


def softsign_backward(grad_y: Array, x: Array) -> Array:
    """`ops.activation.softsign_backward`."""

    def formula(grad_y: Array, x: Array) -> Array:
        d = np.abs(x)
        d += 1
        grad_x = grad_y / d
        grad_x /= d
        grad_x[np.isinf(d)] = np.nan
        return grad_x

    return _precise(formula, grad_y, x)


def tanh(x: Array) -> Array:
    """`ops.activation.tanh`."""
    expect.dtype("tanh: x", x)
    return _blockwise(lambda x, y: precise(np.tanh, x, out=y), x, passes=2)


def tanh_backward(grad_y: Array, y: Array) -> Array:
    """`ops.activation.tanh_backward`."""
    return _precise(lambda grad_y, y: grad_y * (1 - y * y), grad_y, y)


def glu(x: Array, *, dim: int = -1) -> Array:
    """`ops.activation.glu`."""
    a, b = (x[half] for half in expect.glu(x, dim))
    return _blockwise(lambda a, b, y: np.divide(a, _one_and_exp(b, y), out=y), a, b, passes=2)


def glu_backward(grad_y: Array, x: Array, *, dim: int = -1) -> Array:
    """`ops.activation.glu_backward`."""
    of_a, of_b = expect.glu(x, dim)
    grad_x = np.empty_like(x)
    grad_x[of_a] = _precise(lambda g, b: g * _sigmoid(b, np.empty_like(b)), grad_y, x[of_b])

    def to_b(grad_y: Array, a: Array, b: Array) -> Array:
        s = _sigmoid(b, np.empty_like(b))
        grad_b = grad_y * a
        grad_b *= s
        grad_b *= 1 - s
        return grad_b

    grad_x[of_b] = _precise(to_b, grad_y, x[of_a], x[of_b])
    return grad_x


# ---- parts of the formulas, on runs of values


def _relu(x: Array, y: Array) -> None:
    """``max(0, x)`` with rows of zeros: with the number 0 NumPy's maximum takes five times as long."""
    zeros = _zeros(x.dtype)
    if x.size <= zeros.size:
        np.maximum(zeros[: x.size], x, out=y)
        return
    whole = x.size - x.size % zeros.size
    np.maximum(zeros, x[:whole].reshape(-1, zeros.size), out=y[:whole].reshape(-1, zeros.size))
    np.maximum(zeros[: x.size - whole], x[whole:], out=y[whole:])


@lru_cache
def _zeros(dtype: Any) -> Array:
    """A row of zeros."""
    return np.zeros(tuning.TUNING.elementwise_row, dtype)


def _at_most(x: Array, limit: float) -> Array:
    """``x <= limit``, in scratch memory."""
    return np.less_equal(x, limit, out=_like(x, "mask", bool))


def _outside(x: Array, low: float, high: float) -> Array:
    """``x <= low or x >= high``, in scratch memory."""
    outside = _at_most(x, low)
    return np.logical_or(outside, np.greater_equal(x, high, out=_like(x, "other mask", bool)), out=outside)


def _up_to_six(x: Array, out: Array) -> Array:
    """``min(max(x + 3, 0), 6)``."""
    return np.add(x, 3, out=out).clip(0, 6, out=out)


def _leaky(x: Array, slope: float | Array, y: Array) -> None:
    np.multiply(x, slope, out=y)
    _choose(x > 0, x, out=y)


def _leaky_backward(x: Array, slope: float | Array, grad_y: Array, grad_x: Array) -> None:
    np.multiply(grad_y, slope, out=grad_x)
    _choose(x > 0, grad_y, out=grad_x)


def _slope(x: Array, weight: Array) -> Array:
    """The weight of PReLU as a view with the shape of ``x``."""
    return np.broadcast_to(weight.reshape(expect.prelu(x, weight)), x.shape)


def _one_and_exp(x: Array, out: Array) -> Array:
    """``1 + exp(-x)``."""
    precise(np.exp, np.negative(x, out=out), out=out)
    return np.add(out, 1, out=out)


def _sigmoid(x: Array, out: Array) -> Array:
    return np.divide(1, _one_and_exp(x, out), out=out)


def _sigmoid_backward(grad_y: Array, y: Array, grad_x: Array) -> None:
    slope = np.subtract(1, y, out=_like(y))
    np.multiply(np.multiply(grad_y, slope, out=slope), y, out=grad_x)


def _distribution(approximate: str) -> Callable[[Array], tuple[Array, Array]]:
    """The function that gives gelu the normal distribution and its density."""
    expect.approximate(approximate)
    return normal if approximate == "none" else _normal_by_tanh


def _normal_by_tanh(x: Array) -> tuple[Array, Array]:
    """The approximation of the normal distribution for gelu, and its derivative, both in float64."""
    scale = 2 * math.sqrt(2 / math.pi)
    square = np.square(x, dtype=np.float64)
    e = 0.044715 * square
    e += 1
    e *= x
    e *= -scale
    np.exp(e, out=e)
    p = 1 / (1 + e)
    above = np.fmin(e * p, 1)  # 1 - p without cancellation; infinity * 0 would be NaN
    square *= 3 * 0.044715 * scale
    square += scale
    square *= p
    square *= above
    return p, square


def _tanh_softplus(x: Array) -> tuple[Array, Array]:
    """``tanh(softplus(x))`` and ``sigmoid(x)`` from one exponential; for x >= 20 both are 1 in either dtype."""
    e = np.minimum(x, 20)
    np.exp(e, out=e)
    n = e * (e + 2)
    return n / (n + 2), e / (1 + e)


# ---- by blocks, and exact choices


def _blockwise(
    formula: Callable[..., object],
    *arrays: Array,
    out: Array | None = None,
    passes: int = 1,
    reads_twice: bool = False,
) -> Array:
    """``formula(*blocks, result)`` for every block of the memory; blocks have one axis.

    The result is ``out``, or a new array like the first one.

    Args:
        formula: Writes its result to its last argument.
        arrays: Of one shape, in any order in memory.
        out: Where to write; it may be one of the arrays.
        passes: About how often the formula reads the block; it decides whether another thread pays.
        reads_twice: Whether the formula reads its arguments after it has begun to write.
    """
    result = blocks.empty_like(arrays[0]) if out is None else out
    views = _in_order(result, arrays)
    target = views[-1]
    if not target.flags.c_contiguous or (reads_twice and out is not None):
        np.copyto(result, _blockwise(formula, *arrays, passes=passes))
        return result
    if target.nbytes <= tuning.TUNING.elementwise_block_bytes:
        blocks.quietly(formula, *[view.reshape(-1) for view in views])
        return result
    parallel, parts = _cut(target, passes)
    blocks.run(lambda part: formula(*[view[part].reshape(-1) for view in views]), parts, parallel=parallel)
    return result


def _in_order(result: Array, arrays: tuple[Array, ...]) -> list[Array]:
    """Views of the arrays and of ``result`` with the axes in the order that ``result`` has in memory.

    If all of them are contiguous then, they have one axis. A view that is not is copied block by block.
    """
    views = [*arrays, result]
    if not result.flags.c_contiguous:
        order, _ = blocks.order_in_memory(result.strides)
        views = [view.transpose(order) for view in views]
    if result.ndim != 1 and all(view.flags.c_contiguous for view in views):
        return [view.reshape(-1) for view in views]
    return views


def _cut(target: Array, passes: int) -> tuple[bool, list[slice]]:
    """Whether several threads pay for a result, and its blocks along the first axis."""
    numbers, nbytes = tuning.TUNING, target.nbytes
    parallel = passes * nbytes >= numbers.elementwise_threads_bytes
    by_threads = parallel and blocks.get_num_threads() > 1
    size = numbers.elementwise_parallel_bytes if by_threads else numbers.elementwise_block_bytes
    length, step = target.shape[0], numbers.elementwise_row if target.ndim == 1 else 1
    parts = blocks.blocks(-(-length // step), step * (nbytes // length), block_bytes=size)
    return parallel, [slice(part.start * step, part.stop * step) for part in parts]


def _like(x: Array, name: str = "values", dtype: Any = None) -> Array:
    """Scratch memory for a block like ``x``."""
    return blocks.scratch(f"activation {name}", x.shape, like=x, dtype=dtype)


def _precise(formula: Callable[..., Array], *arrays: Array, out: Array | None = None) -> Array:
    """`_rounded`, with the arguments in float64, too.

    For formulas with several roundings, and with exp, which in NumPy's float32 is two or three units in the last place
    off. torch's result is off by one, so that float32 here would be less accurate.
    """
    return _rounded(
        lambda *blocks: formula(*(block.astype(np.float64, copy=False) for block in blocks)), *arrays, out=out
    )


def _rounded(formula: Callable[..., Array], *arrays: Array, out: Array | None = None) -> Array:
    """`_blockwise` for a ``formula(*blocks)`` that returns its result in float64."""
    return _blockwise(
        lambda *blocks: np.copyto(blocks[-1], formula(*blocks[:-1]), casting="same_kind"), *arrays, out=out, passes=4
    )


# A product with 0 and 1 can't replace a choice, because infinity and NaN times 0 are NaN. np.where takes eight times as
# long as these functions, because it branches at every element.


def _zero(where: Array, x: Array, *, out: Array) -> None:
    """``out = 0 where where else x``. Overwrites ``where``."""
    keep_where(np.logical_not(where, out=where), x, out=out)


def _choose(where: Array, x: Array, *, out: Array) -> None:
    """``out = x where where else out``, by the bits of both."""
    bits = BITS[out.itemsize]
    result = out.view(bits)
    change = np.bitwise_xor(result, x.view(bits), out=_like(out, "change", bits))
    keep_where(where, change, out=change)
    np.bitwise_xor(result, change, out=result)
