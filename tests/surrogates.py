"""Layers whose backward is not the derivative of their forward but that of a surrogate; and each with a mistake."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnn_lightning.layers import bridge


class PointwiseFunction(torch.autograd.Function):
    """``op``, with the gradient that ``op_backward`` computes from the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, op: Any, op_backward: Any, options: dict[str, Any]) -> Any:
        ctx.save_for_backward(x)
        ctx.op_backward, ctx.options = op_backward, options
        return bridge.call(op, x, **options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return bridge.call(ctx.op_backward, grad, x, **ctx.options), None, None, None


class Pointwise(torch.nn.Module):
    op: Any
    op_backward: Any

    def __init__(self, **options: float) -> None:
        super().__init__()
        self.__dict__.update(options)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return PointwiseFunction.apply(x, self.op, self.op_backward, self.options)


# ---- a sign: straight-through, and clipped


def sign(x: Any) -> Any:
    return np.sign(x)


def straight_through(grad: Any, x: Any) -> Any:
    return grad.copy()


def minus_straight_through(grad: Any, x: Any) -> Any:
    return -grad


def clipped(grad: Any, x: Any) -> Any:
    return grad * (np.abs(x) <= 1)


def narrower(grad: Any, x: Any) -> Any:
    return grad * (np.abs(x) <= 0.5)


def zeros(grad: Any, x: Any) -> Any:
    return np.zeros_like(grad)


class Sign(Pointwise):
    op = staticmethod(sign)
    op_backward = staticmethod(straight_through)


class ClippedSign(Sign):
    op_backward = staticmethod(clipped)


class SignOfWrongSign(Sign):
    op_backward = staticmethod(minus_straight_through)


class DerivativeOfSign(Sign):
    op_backward = staticmethod(zeros)


class NarrowerSign(Sign):
    op_backward = staticmethod(narrower)


# ---- ternary: -1, 0 or 1


def ternary(x: Any, threshold: float) -> Any:
    return np.where(np.abs(x) <= threshold, 0 * x, np.sign(x))


def ternary_backward(grad: Any, x: Any, threshold: float) -> Any:
    return grad * (np.abs(x) <= 1)


class Ternary(Pointwise):
    op = staticmethod(ternary)
    op_backward = staticmethod(ternary_backward)

    def __init__(self, threshold: float = 0.3) -> None:
        super().__init__(threshold=threshold)


# ---- the number of a step, in a range


def levels(x: Any, scale: float) -> Any:
    return np.clip(np.round(x / scale), -4, 3)


def levels_backward(grad: Any, x: Any, scale: float) -> Any:
    return grad * ((x >= -4 * scale) & (x <= 3 * scale)) / scale


def without_scale(grad: Any, x: Any, scale: float) -> Any:
    return grad * ((x >= -4 * scale) & (x <= 3 * scale))


def without_range(grad: Any, x: Any, scale: float) -> Any:
    return grad / scale


class Levels(Pointwise):
    op = staticmethod(levels)
    op_backward = staticmethod(levels_backward)

    def __init__(self, scale: float = 0.25) -> None:
        super().__init__(scale=scale)


class LevelsWithoutScale(Levels):
    op_backward = staticmethod(without_scale)


class LevelsWithoutRange(Levels):
    op_backward = staticmethod(without_range)


def range_of_levels(x: Tensor) -> Tensor:
    return (x / 0.25).clamp(-4, 3)


# ---- a quantiser that learns its step


def quantise(x: Any, step: Any) -> Any:
    return np.clip(np.round(x / step), -4, 3) * step


def quantise_backward(grad: Any, x: Any, step: Any) -> Any:
    u = x / step
    inside = (u >= -4) & (u <= 3)
    grad_step = grad * np.where(inside, np.round(u) - u, np.clip(u, -4, 3))
    return grad * inside, grad_step.sum().reshape(step.shape)


def mean_for_sum(grad: Any, x: Any, step: Any) -> Any:
    grad_x, grad_step = quantise_backward(grad, x, step)
    return grad_x, grad_step / x.size if x.size else grad_step


def without_step(grad: Any, x: Any, step: Any) -> Any:
    return quantise_backward(grad, x, step)[0], np.zeros_like(step)


class LearnedStepFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, op_backward: Any) -> Any:
        ctx.save_for_backward(x, step)
        ctx.op_backward = op_backward
        return bridge.call(quantise, x, step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return *bridge.call(ctx.op_backward, grad, *ctx.saved_tensors), None


class LearnedStep(torch.nn.Module):
    op_backward = staticmethod(quantise_backward)

    def __init__(self) -> None:
        super().__init__()
        self.step = torch.nn.Parameter(torch.tensor([0.3]))

    def forward(self, x: Tensor) -> Tensor:
        x, step = bridge.autocast("float32", x, self.step)
        return LearnedStepFunction.apply(x, step, self.op_backward)


class MeanStep(LearnedStep):
    op_backward = staticmethod(mean_for_sum)


class ForgottenStep(LearnedStep):
    op_backward = staticmethod(without_step)


class StepSurrogate(torch.nn.Module):
    """Rounding straight-through, by a constant: its step has a gradient, too."""

    def __init__(self) -> None:
        super().__init__()
        self.step = torch.nn.Parameter(torch.tensor([0.3]))

    def forward(self, x: Tensor) -> Tensor:
        u = (x / self.step).clamp(-4, 3)
        return (u + (u.round() - u).detach()) * self.step


# ---- binary weights


def binary_linear(x: Any, weight: Any) -> Any:
    return x @ np.sign(weight).T


def binary_linear_backward(grad: Any, x: Any, weight: Any) -> Any:
    return grad @ np.sign(weight), grad.T @ x * (np.abs(weight) <= 1)


def without_mask(grad: Any, x: Any, weight: Any) -> Any:
    return grad @ np.sign(weight), grad.T @ x


class BinaryLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, op_backward: Any) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.op_backward = op_backward
        return bridge.call(binary_linear, x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return *bridge.call(ctx.op_backward, grad, *ctx.saved_tensors), None


class BinaryLinear(torch.nn.Module):
    op_backward = staticmethod(binary_linear_backward)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x, weight = bridge.autocast("lower", x, self.weight)
        return BinaryLinearFunction.apply(x, weight, self.op_backward)


class BinaryLinearWithoutMask(BinaryLinear):
    op_backward = staticmethod(without_mask)


class BinarySurrogate(torch.nn.Module):
    """The sign straight-through where a weight is within -1 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        inside = self.weight.clamp(-1, 1)
        return x @ (inside + (self.weight.sign() - inside).detach()).T


# ---- spikes above a threshold


def spike(x: Any, threshold: float, slope: float) -> Any:
    return np.heaviside(x - threshold, np.zeros_like(x))


def logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def sigmoid_backward(grad: Any, x: Any, threshold: float, slope: float) -> Any:
    s = logistic(slope * (x - threshold))
    return grad * slope * s * (1 - s)


def arctan_backward(grad: Any, x: Any, threshold: float, slope: float) -> Any:
    return grad * (slope / 2) / (1 + (np.pi / 2 * slope * (x - threshold)) ** 2)


def fast_sigmoid_backward(grad: Any, x: Any, threshold: float, slope: float) -> Any:
    return grad / (1 + slope * np.abs(x - threshold)) ** 2


def triangle_backward(grad: Any, x: Any, threshold: float, slope: float) -> Any:
    return grad * np.maximum(1 - slope * np.abs(x - threshold), np.zeros_like(x))


def at_output(grad: Any, x: Any, threshold: float, slope: float) -> Any:
    return sigmoid_backward(grad, spike(x, threshold, slope), threshold, slope)


def without_threshold(grad: Any, x: Any, threshold: float, slope: float) -> Any:
    return arctan_backward(grad, x, 0.0, slope)


def half_as_steep(grad: Any, x: Any, threshold: float, slope: float) -> Any:
    return sigmoid_backward(grad, x, threshold, slope / 2)


def twice_as_wide(grad: Any, x: Any, threshold: float, slope: float) -> Any:
    return triangle_backward(grad, x, threshold, slope / 2)


class Spike(Pointwise):
    op = staticmethod(spike)
    op_backward = staticmethod(sigmoid_backward)

    def __init__(self, threshold: float = 0.75, slope: float = 4.0) -> None:
        super().__init__(threshold=threshold, slope=slope)


class ArctanSpike(Spike):
    op_backward = staticmethod(arctan_backward)


class FastSpike(Spike):
    op_backward = staticmethod(fast_sigmoid_backward)


class TriangleSpike(Spike):
    op_backward = staticmethod(triangle_backward)


class SpikeAtOutput(Spike):
    op_backward = staticmethod(at_output)


class SpikeWithoutThreshold(Spike):
    op_backward = staticmethod(without_threshold)


class FlatterSpike(Spike):
    op_backward = staticmethod(half_as_steep)


class WiderSpike(Spike):
    op_backward = staticmethod(twice_as_wide)
