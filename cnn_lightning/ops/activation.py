"""Elementwise activations: forward and backward pairs.

Any shape will do, for ``x`` and ``grad_y`` alike; results have the shape and dtype of ``x``. Values and gradients at
kinks, infinities and NaN are torch's. (Where its vectorised and its scalar code differ, in the gradient of relu6, elu
and hardswish at NaN, those of its scalar code, which its GPU code shares.) What has an exponential in it is computed in
float64 and rounded once.
"""

import math

import numpy as np

from cnn_lightning.ops import expect
from cnn_lightning.ops.special import normal
from cnn_lightning.ops.types import Array


def relu(x: Array) -> Array:
    """``y = max(0, x)``; NaN stays NaN, and so does -0, the second of equals. Integers may be passed too.

    Raises:
        NotImplementedError: Booleans.
    """
    expect.dtype("relu: x", x, "fiu")
    return np.maximum(0, x)


def relu_backward(grad_y: Array, x: Array) -> Array:
    """``grad_x = 0 where x <= 0 else grad_y``: it passes at NaN. Instead of ``x`` the output will do."""
    return np.where(x <= 0, 0, grad_y)


def relu6(x: Array) -> Array:
    """``y = min(max(x, 0), 6)``. Integers may be passed too.

    Raises:
        NotImplementedError: Booleans.
    """
    expect.dtype("relu6: x", x, "fiu")
    return np.minimum(np.maximum(0, x), 6)


def relu6_backward(grad_y: Array, x: Array) -> Array:
    """``grad_x = 0 where x <= 0 or x >= 6 else grad_y``. Instead of ``x`` the output will do."""
    return np.where((x <= 0) | (x >= 6), 0, grad_y)


def hardtanh(x: Array, *, min_val: float = -1.0, max_val: float = 1.0) -> Array:
    """``y = min(max(x, min_val), max_val)``. Integers may be passed too, to limits that are cut to integers.

    Raises:
        NotImplementedError: Booleans.
        RuntimeError: A limit below 0 for unsigned integers.
        ValueError: ``min_val`` above ``max_val``.
    """
    low, high = expect.hardtanh(x, min_val, max_val)
    return np.minimum(high, np.maximum(low, x))


def hardtanh_backward(grad_y: Array, x: Array, *, min_val: float = -1.0, max_val: float = 1.0) -> Array:
    """``grad_x = 0 where x <= min_val or x >= max_val else grad_y``. Instead of ``x`` the output will do."""
    return np.where((x <= min_val) | (x >= max_val), 0, grad_y)


def threshold(x: Array, *, threshold: float, value: float) -> Array:
    """``y = value where x <= threshold else x``: NaN stays NaN. Integers may be passed too.

    Raises:
        NotImplementedError: Booleans.
        RuntimeError: A threshold or a value below 0 for unsigned integers.
    """
    at, constant = expect.limits("threshold", x, threshold=threshold, value=value)
    return np.where(x <= at, constant, x)


def threshold_backward(grad_y: Array, x: Array, *, threshold: float) -> Array:
    """``grad_x = 0 where x <= threshold else grad_y``."""
    return np.where(x <= threshold, 0, grad_y)


def leaky_relu(x: Array, *, negative_slope: float = 0.01) -> Array:
    """``y = x where x > 0 else negative_slope x``."""
    expect.dtype("leaky_relu: x", x)
    expect.number("leaky_relu: negative_slope", negative_slope)
    return np.where(x > 0, x, negative_slope * x)


def leaky_relu_backward(grad_y: Array, x: Array, *, negative_slope: float = 0.01) -> Array:
    """``grad_x = grad_y where x > 0 else negative_slope grad_y``. Unless the slope is negative, the output will do."""
    return np.where(x > 0, grad_y, negative_slope * grad_y)


def prelu(x: Array, weight: Array) -> Array:
    """``y = x where x > 0 else weight x``, with one weight, or one for each channel: ``(N, C, ...)`` and ``(C,)``.

    Raises:
        RuntimeError: An ``x`` that is not floating, or has another number of channels.
    """
    shape = expect.prelu(x, weight)
    return np.where(x > 0, x, weight.reshape(shape) * x)


def prelu_backward(grad_y: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """``grad_x = grad_y where x > 0 else weight grad_y``.

    ``grad_weight`` sums ``grad_y x`` where not x > 0, over all but the channels.
    """
    shape = expect.prelu(x, weight)
    grad_x = np.where(x > 0, grad_y, weight.reshape(shape) * grad_y)
    axes = tuple(axis for axis in range(x.ndim) if weight.size == 1 or axis != 1)
    grad_weight = np.where(x > 0, 0, grad_y * x).sum(axes, dtype=np.float64)
    return grad_x, grad_weight.astype(x.dtype).reshape(weight.shape)


def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """``y = x where x > 0 else alpha (exp(x) - 1)``."""
    expect.dtype("elu: x", x)
    expect.number("elu: alpha", alpha)
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(_wide(x), 0))).astype(x.dtype)


def elu_backward(grad_y: Array, x: Array, *, alpha: float = 1.0) -> Array:
    """``grad_x = grad_y alpha exp(x) where x <= 0 else grad_y``."""
    return np.where(x <= 0, grad_y * alpha * np.exp(np.minimum(_wide(x), 0)), grad_y).astype(x.dtype)


def elu_backward_from_output(grad_y: Array, y: Array, *, alpha: float = 1.0) -> Array:
    """``grad_x = grad_y (y + alpha) where y <= 0 else grad_y``, for an ``alpha`` that is not negative."""
    return np.where(y <= 0, grad_y * (y + alpha), grad_y)


def selu(x: Array) -> Array:
    """``y = scale x where x > 0 else scale alpha (exp(x) - 1)``.

    The constants are those with which mean 0 and variance 1 stay what they are, from G. Klambauer et al.,
    "Self-normalizing neural networks", https://arxiv.org/abs/1706.02515, equation 2.
    """
    expect.dtype("selu: x", x)
    below = SELU_SCALE * SELU_ALPHA * np.expm1(np.minimum(_wide(x), 0))
    return np.where(x > 0, SELU_SCALE * x, below).astype(x.dtype)


def selu_backward(grad_y: Array, x: Array) -> Array:
    """``grad_x = grad_y scale alpha exp(x) where x <= 0 else scale grad_y``."""
    slope = SELU_SCALE * SELU_ALPHA * np.exp(np.minimum(_wide(x), 0))
    return np.where(x <= 0, grad_y * slope, SELU_SCALE * grad_y).astype(x.dtype)


def selu_backward_from_output(grad_y: Array, y: Array) -> Array:
    """``grad_x = grad_y (y + scale alpha) where y <= 0 else scale grad_y``."""
    return np.where(y <= 0, grad_y * (y + SELU_SCALE * SELU_ALPHA), SELU_SCALE * grad_y)


SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


def celu(x: Array, *, alpha: float = 1.0) -> Array:
    """``y = x where x > 0 else alpha (exp(x / alpha) - 1)``.

    Raises:
        RuntimeError: An ``alpha`` of 0.
    """
    expect.celu(x, alpha)
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(_wide(x), 0) / alpha)).astype(x.dtype)


def celu_backward(grad_y: Array, x: Array, *, alpha: float = 1.0) -> Array:
    """``grad_x = grad_y exp(x / alpha) where x <= 0 else grad_y``."""
    inverse = 1 / float(np.float32(alpha))  # as torch rounds it, for float64 too
    slope = inverse * alpha * np.exp(np.minimum(_wide(x), 0) * inverse)
    return np.where(x <= 0, grad_y * slope, grad_y).astype(x.dtype)


def celu_backward_from_output(grad_y: Array, y: Array, *, alpha: float = 1.0) -> Array:
    """``grad_x = grad_y (y / alpha + 1) where y <= 0 else grad_y``, for an ``alpha`` that is not negative."""
    return np.where(y <= 0, grad_y / float(np.float32(alpha)) * (y + alpha), grad_y)


def gelu(x: Array, *, approximate: str = "none") -> Array:
    """``y = x P(x)``, where ``P(x) = (1 + erf(x / sqrt 2)) / 2`` is the normal distribution.

    With ``approximate="tanh"``, ``P(x) = (1 + tanh u) / 2 = sigmoid(2 u)``, ``u = sqrt(2 / pi) (x + 0.044715 x^3)``.
    It is not computed by ``1 + erf`` or ``1 + tanh``, which lose all digits for negative x.

    Raises:
        RuntimeError: An ``approximate`` that is neither "none" nor "tanh" (a TypeError where it is no string).
    """
    expect.dtype("gelu: x", x)
    expect.approximate(approximate)
    p, _ = normal(x) if approximate == "none" else _normal_by_tanh(x)
    return (p * x).astype(x.dtype)


def gelu_backward(grad_y: Array, x: Array, *, approximate: str = "none") -> Array:
    """``grad_x = grad_y (P(x) + x P'(x))``, with ``P'(x) = exp(-x^2 / 2) / sqrt(2 pi)``.

    With ``approximate="tanh"``, ``P'(x) = 2 P(x) (1 - P(x)) sqrt(2 / pi) (1 + 3 0.044715 x^2)``.
    """
    p, density = normal(x) if approximate == "none" else _normal_by_tanh(x)
    return (grad_y * (p + x * density)).astype(x.dtype)


def _normal_by_tanh(x: Array) -> tuple[Array, Array]:
    """Gelu's approximation of the normal distribution, and the derivative of that, both in float64."""
    scale, square = 2 * math.sqrt(2 / math.pi), _wide(x) ** 2
    e = np.exp(-scale * x * (1 + 0.044715 * square))
    p = 1 / (1 + e)
    above = np.fmin(e * p, 1)  # 1 - p without cancellation; NaN where e is infinite and p 0
    return p, p * above * scale * (1 + 3 * 0.044715 * square)


def silu(x: Array) -> Array:
    """``y = x sigmoid(x)``."""
    expect.dtype("silu: x", x)
    return (x / (1 + np.exp(-_wide(x)))).astype(x.dtype)


def silu_backward(grad_y: Array, x: Array) -> Array:
    """``grad_x = grad_y s (1 + x (1 - s))``, ``s = sigmoid(x)``."""
    s = 1 / (1 + np.exp(-_wide(x)))
    return (grad_y * (s * (1 + x * (1 - s)))).astype(x.dtype)


def mish(x: Array) -> Array:
    """``y = x tanh(softplus(x))``, which is ``x n / (n + 2)`` with ``n = e (e + 2)``, ``e = exp(x)``."""
    expect.dtype("mish: x", x)
    t, _ = _tanh_softplus(x)
    return (x * t).astype(x.dtype)


def mish_backward(grad_y: Array, x: Array) -> Array:
    """``grad_x = grad_y (t + x s (1 - t^2))``, ``t = tanh(softplus(x))``, ``s = sigmoid(x)``."""
    t, s = _tanh_softplus(x)
    return (grad_y * (t + x * s * (1 - t * t))).astype(x.dtype)


def _tanh_softplus(x: Array) -> tuple[Array, Array]:
    """``tanh(softplus(x))`` and ``sigmoid(x)`` from one exponential; from x = 20 on both are 1 in either dtype."""
    e = np.exp(np.minimum(_wide(x), 20))
    n = e * (e + 2)
    return n / (n + 2), e / (1 + e)


def softplus(x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """``y = log(1 + exp(beta x)) / beta``, but ``x`` where ``beta x > threshold``."""
    expect.dtype("softplus: x", x)
    expect.number("softplus: beta", beta)
    expect.number("softplus: threshold", threshold)
    z = beta * _wide(x)
    y = (np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0)) * (1 / beta if beta else math.inf)
    return np.where(z > threshold, x, y).astype(x.dtype)


def softplus_backward(grad_y: Array, x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """``grad_x = grad_y sigmoid(beta x)``, but ``grad_y`` where ``beta x > threshold``."""
    z = beta * _wide(x)
    return np.where(z > threshold, grad_y, grad_y / (1 + np.exp(-z))).astype(x.dtype)


def hardswish(x: Array) -> Array:
    """``y = x min(max(x + 3, 0), 6) / 6``."""
    expect.dtype("hardswish: x", x)
    return x * np.minimum(np.maximum(x + 3, 0), 6) / 6


def hardswish_backward(grad_y: Array, x: Array) -> Array:
    """``grad_x = 0 where x <= -3, grad_y (x / 3 + 1/2) where x < 3, else grad_y``."""
    return np.where(x <= -3, 0, np.where(x < 3, grad_y * (x / 3 + 0.5), grad_y))


def hardsigmoid(x: Array) -> Array:
    """``y = min(max(x + 3, 0), 6) / 6``."""
    expect.dtype("hardsigmoid: x", x)
    return np.minimum(np.maximum(x + 3, 0), 6) / 6


def hardsigmoid_backward(grad_y: Array, x: Array) -> Array:
    """``grad_x = grad_y / 6 where -3 < x < 3 else 0``."""
    return np.where((x > -3) & (x < 3), grad_y * ONE_SIXTH, 0)


ONE_SIXTH = float(np.float32(1 / 6))
"""As torch rounds it, for float64 too: an exact sixth would differ from its gradients by 3e-8."""


def sigmoid(x: Array) -> Array:
    """``y = 1 / (1 + exp(-x))``."""
    expect.dtype("sigmoid: x", x)
    return (1 / (1 + np.exp(-_wide(x)))).astype(x.dtype)


def sigmoid_backward(grad_y: Array, y: Array) -> Array:
    """``grad_x = grad_y (1 - y) y``."""
    return grad_y * (1 - y) * y


def logsigmoid(x: Array) -> Array:
    """``y = log(1 / (1 + exp(-x)))``, as ``min(x, 0) - log(1 + exp(-|x|))``, whose exponential is at most 1."""
    expect.dtype("logsigmoid: x", x)
    return (np.minimum(_wide(x), 0) - np.log1p(np.exp(-np.abs(_wide(x))))).astype(x.dtype)


def logsigmoid_backward(grad_y: Array, x: Array) -> Array:
    """``grad_x = grad_y / (1 + exp(x))``."""
    return (grad_y / (1 + np.exp(_wide(x)))).astype(x.dtype)


def softsign(x: Array) -> Array:
    """``y = x / (1 + |x|)``: NaN at infinity."""
    expect.dtype("softsign: x", x)
    return x / (1 + np.abs(x))


def softsign_backward(grad_y: Array, x: Array) -> Array:
    """``grad_x = grad_y / (1 + |x|)^2``: NaN at infinity, as the forward."""
    d = 1 + np.abs(_wide(x))
    return np.where(np.isinf(x), np.nan, grad_y / d / d).astype(x.dtype)


def tanh(x: Array) -> Array:
    """``y = (exp(x) - exp(-x)) / (exp(x) + exp(-x))``."""
    expect.dtype("tanh: x", x)
    return np.tanh(_wide(x)).astype(x.dtype)


def tanh_backward(grad_y: Array, y: Array) -> Array:
    """``grad_x = grad_y (1 - y^2)``."""
    return (grad_y * (1 - _wide(y) ** 2)).astype(y.dtype)


def glu(x: Array, *, dim: int = -1) -> Array:
    """``y = a sigmoid(b)``, where ``a`` and ``b`` are the halves of ``x`` along ``dim``.

    Raises:
        NotImplementedError: An ``x`` that is not floating.
        RuntimeError: An ``x`` without dimensions, or of an odd size along ``dim``.
        IndexError: A ``dim`` that ``x`` does not have.
    """
    a, b = (x[half] for half in expect.glu(x, dim))
    return (a / (1 + np.exp(-_wide(b)))).astype(x.dtype)


def glu_backward(grad_y: Array, x: Array, *, dim: int = -1) -> Array:
    """``grad_a = grad_y s`` and ``grad_b = grad_y a s (1 - s)``, ``s = sigmoid(b)``, side by side along ``dim``."""
    a, b = (x[half] for half in expect.glu(x, dim))
    s = 1 / (1 + np.exp(-_wide(b)))
    return np.concatenate((grad_y * s, grad_y * a * s * (1 - s)), axis=dim).astype(x.dtype)


def _wide(x: Array) -> Array:
    """``x`` in float64: torch's exponentials are rounded once, NumPy's in float32 are two or three units off."""
    return x.astype(np.float64)
