"""Activation layers: each Function names the pair of `cnn_lightning.ops.activation` that it calls."""

from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.ops import activation

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "SELU",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
    "Threshold",
]

# Each Function saves the tensor that torch saves, so that the same in-place changes are allowed: ReLU, Sigmoid and Tanh
# save their output, the others their input. If inplace=True overwrites the input, LeakyReLU, ELU, SELU and CELU save
# their output, the others a copy of the input.


def _before(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
    """The input, or a copy of it if backward needs it and ``inplace=True`` will overwrite it."""
    return bridge.copy(x) if inplace and ctx.needs_input_grad[0] else x


def _computed(ctx: Any, op: bridge.Operation, x: Tensor, inplace: bool, **options: Any) -> Tensor:
    """``op`` of ``x``; with ``inplace=True`` written into ``x``, which is returned."""
    if inplace:
        ctx.mark_dirty(x)
    y: Tensor = bridge.call(op, x, into=x if inplace else None, **options)
    return y


class ReLUFunction(torch.autograd.Function):
    """max(x, 0)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Any:
        """Save the output."""
        y = _computed(ctx, activation.relu, x, inplace)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the output."""
        return bridge.call(activation.relu_backward, grad_y, *ctx.saved_tensors), None


@catalog.layer(
    native=torch.nn.ReLU,
    formulas="activation",
    functions=("relu", "relu_"),
    kinks=(0,),
    choices=None,
    page=(
        r"y = \max(x, 0)",
        r"\d{x} = g \text{ where } x > 0 \text{, else } 0",
    ),
    memory=catalog.same_order(relu=0, relu_backward=1),
    flops=None,
)
class ReLU(Layer, torch.nn.ReLU):
    """`torch.nn.ReLU` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``max(x, 0)``, any shape."""
        y: Tensor = ReLUFunction.apply(input, bridge.overwrites(input, self.inplace))
        return y


class ReLU6Function(torch.autograd.Function):
    """min(max(x, 0), 6)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Any:
        """Save the input, or a copy of it."""
        ctx.save_for_backward(_before(ctx, x, inplace))
        return _computed(ctx, activation.relu6, x, inplace)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the input."""
        return bridge.call(activation.relu6_backward, grad_y, *ctx.saved_tensors), None


@catalog.layer(
    native=torch.nn.ReLU6,
    formulas="activation",
    functions=("relu6",),
    kinks=(0, 6),
    choices=None,
    page=(
        r"y = \min(\max(x, 0), 6)",
        r"\d{x} = g \text{ where } 0 < x < 6 \text{, else } 0",
    ),
    memory=catalog.same_order(relu6=0, relu6_backward=0),
    flops=None,
)
class ReLU6(Layer, torch.nn.ReLU6):
    """`torch.nn.ReLU6` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``min(max(x, 0), 6)``, any shape."""
        y: Tensor = ReLU6Function.apply(input, bridge.overwrites(input, self.inplace))
        return y


class HardtanhFunction(torch.autograd.Function):
    """min(max(x, min_val), max_val)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, min_val: float, max_val: float, inplace: bool) -> Any:
        """Save the input, or a copy of it."""
        ctx.save_for_backward(_before(ctx, x, inplace))
        ctx.limits = {"min_val": min_val, "max_val": max_val}
        return _computed(ctx, activation.hardtanh, x, inplace, **ctx.limits)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the input."""
        grad_x = bridge.call(activation.hardtanh_backward, grad_y, *ctx.saved_tensors, **ctx.limits)
        return grad_x, None, None, None


@catalog.layer(
    native=torch.nn.Hardtanh,
    formulas="activation",
    functions=("hardtanh", "hardtanh_"),
    kinks=("min_val", "max_val"),
    choices=None,
    page=(
        r"y = \min(\max(x, a), b)",
        r"\d{x} = g \text{ where } a < x < b \text{, else } 0",
    ),
    memory=catalog.same_order(hardtanh=0, hardtanh_backward=0),
    flops=None,
)
class Hardtanh(Layer, torch.nn.Hardtanh):
    """`torch.nn.Hardtanh` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``min(max(x, min_val), max_val)``, any shape."""
        inplace = bridge.overwrites(input, self.inplace)
        y: Tensor = HardtanhFunction.apply(input, self.min_val, self.max_val, inplace)
        return y


class ThresholdFunction(torch.autograd.Function):
    """x where x > threshold, else value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: float, value: float, inplace: bool) -> Any:
        """Save the input, or a copy of it."""
        ctx.save_for_backward(_before(ctx, x, inplace))
        ctx.options = {"threshold": threshold, "value": value}
        return _computed(ctx, activation.threshold, x, inplace, **ctx.options)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the input."""
        grad_x = bridge.call(activation.threshold_backward, grad_y, *ctx.saved_tensors, **ctx.options)
        return grad_x, None, None, None


@catalog.layer(
    native=torch.nn.Threshold,
    formulas="activation",
    functions=("threshold", "threshold_"),
    kinks=("threshold",),
    choices=None,
    page=(
        r"y = x \text{ where } x > t \text{, else } v",
        r"\d{x} = g \text{ where } x > t \text{, else } 0",
    ),
    memory=catalog.same_order(threshold=0, threshold_backward=1),
    flops=None,
)
class Threshold(Layer, torch.nn.Threshold):
    """`torch.nn.Threshold` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``x`` where x > threshold, else ``value``, any shape."""
        inplace = bridge.overwrites(input, self.inplace)
        y: Tensor = ThresholdFunction.apply(input, self.threshold, self.value, inplace)
        return y


class LeakyReLUFunction(torch.autograd.Function):
    """x where x > 0, else negative_slope x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, negative_slope: float, inplace: bool) -> Any:
        """Save the input, or the output that overwrites it."""
        ctx.negative_slope, ctx.inplace = negative_slope, inplace
        y = _computed(ctx, activation.leaky_relu, x, inplace, negative_slope=negative_slope)
        ctx.save_for_backward(y if inplace else x)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From either. If negative_slope is negative, the sign of the output is not that of the input."""
        if ctx.inplace and ctx.negative_slope < 0:
            raise RuntimeError(
                f"negative_slope: expected none below 0 for a gradient with inplace=True, got {ctx.negative_slope}"
            )
        grad_x = bridge.call(
            activation.leaky_relu_backward, grad_y, *ctx.saved_tensors, negative_slope=ctx.negative_slope
        )
        return grad_x, None, None


@catalog.layer(
    native=torch.nn.LeakyReLU,
    formulas="activation",
    functions=("leaky_relu",),
    kinks=(0,),
    choices=None,
    page=(
        r"y = \max(x, 0) + a \min(x, 0)",
        r"\d{x} = g \text{ where } x > 0 \text{, else } a g",
    ),
    memory=catalog.same_order(leaky_relu=0, leaky_relu_backward=1),
    flops=None,
)
class LeakyReLU(Layer, torch.nn.LeakyReLU):
    """`torch.nn.LeakyReLU` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``x`` where x > 0, else ``negative_slope x``, any shape."""
        y: Tensor = LeakyReLUFunction.apply(input, self.negative_slope, bridge.overwrites(input, self.inplace))
        return y


class PReLUFunction(torch.autograd.Function):
    """x where x > 0, else weight x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Any:
        """Save the arguments."""
        ctx.save_for_backward(x, weight)
        return bridge.call(activation.prelu, x, weight)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """The gradients of both."""
        return bridge.call(activation.prelu_backward, grad_y, *ctx.saved_tensors, needs=tuple(ctx.needs_input_grad))


@catalog.layer(
    native=torch.nn.PReLU,
    formulas="activation",
    functions=("prelu",),
    kinks=(0,),
    choices=None,
    page=(
        r"y = \max(x, 0) + a_c \min(x, 0)",
        r"\d{x} = g \text{ where } x > 0 \text{, else } a_c g"
        "\n"
        r"\d{a_c} = \sum g \min(x, 0)",
    ),
    memory=catalog.same_order(prelu=0, prelu_backward=1),
    flops=None,
)
class PReLU(Layer, torch.nn.PReLU):
    """`torch.nn.PReLU` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``x`` where x > 0, else ``weight x``, with one weight or one for each channel of ``(N, C, ...)``."""
        y: Tensor = PReLUFunction.apply(*bridge.autocast("lower", input, self.weight))
        return y


class ELUFunction(torch.autograd.Function):
    """x where x > 0, else alpha (exp(x) - 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float, inplace: bool) -> Any:
        """Save the input, or the output that overwrites it."""
        ctx.alpha, ctx.inplace = alpha, inplace
        y = _computed(ctx, activation.elu, x, inplace, alpha=alpha)
        ctx.save_for_backward(y if inplace else x)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From either. If alpha is negative, the sign of the output is not that of the input."""
        if ctx.inplace and ctx.alpha < 0:
            raise RuntimeError(f"alpha: expected none below 0 for a gradient with inplace=True, got {ctx.alpha}")
        backward = activation.elu_backward_from_output if ctx.inplace else activation.elu_backward
        return bridge.call(backward, grad_y, *ctx.saved_tensors, alpha=ctx.alpha), None, None


@catalog.layer(
    native=torch.nn.ELU,
    formulas="activation",
    functions=("elu",),
    kinks=(),
    choices=None,
    page=(
        r"y = x \text{ where } x > 0 \text{, else } a (e^x - 1)",
        r"\d{x} = g \text{ where } x > 0 \text{, else } a e^x g",
    ),
    memory=catalog.same_order(elu=0, elu_backward=0, elu_backward_from_output=0),
    flops=None,
)
class ELU(Layer, torch.nn.ELU):
    """`torch.nn.ELU` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``x`` where x > 0, else ``alpha (exp(x) - 1)``, any shape."""
        y: Tensor = ELUFunction.apply(input, self.alpha, bridge.overwrites(input, self.inplace))
        return y


class SELUFunction(torch.autograd.Function):
    """scale x where x > 0, else scale alpha (exp(x) - 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Any:
        """Save the input, or the output that overwrites it."""
        ctx.inplace = inplace
        y = _computed(ctx, activation.selu, x, inplace)
        ctx.save_for_backward(y if inplace else x)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From either."""
        backward = activation.selu_backward_from_output if ctx.inplace else activation.selu_backward
        return bridge.call(backward, grad_y, *ctx.saved_tensors), None


@catalog.layer(
    native=torch.nn.SELU,
    formulas="activation",
    functions=("selu", "selu_"),
    kinks=(0,),
    choices=None,
    page=(
        r"y = s x \text{ where } x > 0 \text{, else } s a (e^x - 1)",
        r"\d{x} = s g \text{ where } x > 0 \text{, else } s a e^x g",
    ),
    memory=catalog.same_order(selu=0, selu_backward=0, selu_backward_from_output=0),
    flops=None,
)
class SELU(Layer, torch.nn.SELU):
    """`torch.nn.SELU` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``scale x`` where x > 0, else ``scale alpha (exp(x) - 1)``, any shape."""
        y: Tensor = SELUFunction.apply(input, bridge.overwrites(input, self.inplace))
        return y


class CELUFunction(torch.autograd.Function):
    """x where x > 0, else alpha (exp(x / alpha) - 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float, inplace: bool) -> Any:
        """Save the input, or the output that overwrites it."""
        ctx.alpha, ctx.inplace = alpha, inplace
        y = _computed(ctx, activation.celu, x, inplace, alpha=alpha)
        ctx.save_for_backward(y if inplace else x)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From either. If alpha is negative, the sign of the output is not that of the input."""
        if ctx.inplace and ctx.alpha < 0:
            raise RuntimeError(f"alpha: expected none below 0 for a gradient with inplace=True, got {ctx.alpha}")
        backward = activation.celu_backward_from_output if ctx.inplace else activation.celu_backward
        return bridge.call(backward, grad_y, *ctx.saved_tensors, alpha=ctx.alpha), None, None


@catalog.layer(
    native=torch.nn.CELU,
    formulas="activation",
    functions=("celu", "celu_"),
    kinks=(),
    choices=None,
    page=(
        r"y = x \text{ where } x > 0 \text{, else } a (e^{x / a} - 1)",
        r"\d{x} = g \text{ where } x > 0 \text{, else } e^{x / a} g",
    ),
    memory=catalog.same_order(celu=0, celu_backward=0, celu_backward_from_output=0),
    flops=None,
)
class CELU(Layer, torch.nn.CELU):
    """`torch.nn.CELU` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``x`` where x > 0, else ``alpha (exp(x / alpha) - 1)``, any shape."""
        y: Tensor = CELUFunction.apply(input, self.alpha, bridge.overwrites(input, self.inplace))
        return y


class GELUFunction(torch.autograd.Function):
    """x P(x) with the normal distribution P."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, approximate: str) -> Any:
        """Save the input."""
        ctx.save_for_backward(x)
        ctx.approximate = approximate
        return bridge.call(activation.gelu, x, approximate=approximate)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the input."""
        return bridge.call(activation.gelu_backward, grad_y, *ctx.saved_tensors, approximate=ctx.approximate), None


@catalog.layer(
    native=torch.nn.GELU,
    formulas="activation",
    functions=("gelu",),
    kinks=(),
    choices=None,
    page=(
        r"y = x Φ(x)",
        r"\d{x} = g (Φ(x) + x φ(x))",
    ),
    memory=catalog.same_order(gelu=0, gelu_backward=1),
    flops=None,
)
class GELU(Layer, torch.nn.GELU):
    """`torch.nn.GELU` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``x P(x)`` with the normal distribution P or its tanh approximation, any shape."""
        y: Tensor = GELUFunction.apply(bridge.expect_tensor(input), self.approximate)
        return y


class SiLUFunction(torch.autograd.Function):
    """x sigmoid(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Any:
        """Save the input, or a copy of it."""
        ctx.save_for_backward(_before(ctx, x, inplace))
        return _computed(ctx, activation.silu, x, inplace)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the input."""
        return bridge.call(activation.silu_backward, grad_y, *ctx.saved_tensors), None


@catalog.layer(
    native=torch.nn.SiLU,
    formulas="activation",
    functions=("silu",),
    kinks=(),
    choices=None,
    page=(
        r"y = x σ(x)"
        "\n"
        r"σ(x) = \frac{1}{1 + e^{-x}}",
        r"\d{x} = g σ(x) (1 + x (1 - σ(x)))",
    ),
    memory=catalog.same_order(silu=0, silu_backward=0),
    flops=None,
)
class SiLU(Layer, torch.nn.SiLU):
    """`torch.nn.SiLU` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``x sigmoid(x)``, any shape."""
        y: Tensor = SiLUFunction.apply(input, bridge.overwrites(input, self.inplace))
        return y


class MishFunction(torch.autograd.Function):
    """x tanh(softplus(x))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Any:
        """Save the input, or a copy of it."""
        ctx.save_for_backward(_before(ctx, x, inplace))
        return _computed(ctx, activation.mish, x, inplace)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the input."""
        return bridge.call(activation.mish_backward, grad_y, *ctx.saved_tensors), None


@catalog.layer(
    native=torch.nn.Mish,
    formulas="activation",
    functions=("mish",),
    kinks=(),
    choices=None,
    page=(
        r"y = x \tanh(\ln(1 + e^x))",
        r"\d{x} = g (t + x (1 - t^2) σ(x)) \text{, where } t = \tanh(\ln(1 + e^x))",
    ),
    memory=catalog.same_order(mish=0, mish_backward=0),
    flops=None,
)
class Mish(Layer, torch.nn.Mish):
    """`torch.nn.Mish` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``x tanh(softplus(x))``, any shape."""
        y: Tensor = MishFunction.apply(input, bridge.overwrites(input, self.inplace))
        return y


class SoftplusFunction(torch.autograd.Function):
    """log(1 + exp(beta x)) / beta."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: float, threshold: float) -> Any:
        """Save the input."""
        ctx.save_for_backward(x)
        ctx.beta = beta
        ctx.threshold = threshold
        return bridge.call(activation.softplus, x, beta=beta, threshold=threshold)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the input."""
        return (
            bridge.call(
                activation.softplus_backward, grad_y, *ctx.saved_tensors, beta=ctx.beta, threshold=ctx.threshold
            ),
            None,
            None,
        )


@catalog.layer(
    native=torch.nn.Softplus,
    formulas="activation",
    functions=("softplus",),
    kinks=(),
    choices=None,
    page=(
        r"y = \frac{1}{β} \ln(1 + e^{β x})",
        r"\d{x} = g σ(β x)",
    ),
    memory=catalog.same_order(softplus=0, softplus_backward=0),
    flops=None,
)
class Softplus(Layer, torch.nn.Softplus):
    """`torch.nn.Softplus` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``log(1 + exp(beta x)) / beta``, and ``x`` above the threshold, any shape."""
        y: Tensor = SoftplusFunction.apply(bridge.expect_tensor(input), self.beta, self.threshold)
        return y


class HardswishFunction(torch.autograd.Function):
    """x min(max(x + 3, 0), 6) / 6."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Any:
        """Save the input, or a copy of it."""
        ctx.save_for_backward(_before(ctx, x, inplace))
        return _computed(ctx, activation.hardswish, x, inplace)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the input."""
        return bridge.call(activation.hardswish_backward, grad_y, *ctx.saved_tensors), None


@catalog.layer(
    native=torch.nn.Hardswish,
    formulas="activation",
    functions=("hardswish",),
    kinks=(-3, 3),
    choices=None,
    page=(
        r"y = \frac{1}{6} x \min(\max(x + 3, 0), 6)",
        r"\d{x} = g \frac{2 x + 3}{6} \text{ where } |x| < 3 \text{; } g \text{ above, } 0 \text{ below}",
    ),
    memory=catalog.same_order(hardswish=0, hardswish_backward=1),
    flops=None,
)
class Hardswish(Layer, torch.nn.Hardswish):
    """`torch.nn.Hardswish` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``x min(max(x + 3, 0), 6) / 6``, any shape."""
        y: Tensor = HardswishFunction.apply(input, bridge.overwrites(input, self.inplace))
        return y


class HardsigmoidFunction(torch.autograd.Function):
    """min(max(x + 3, 0), 6) / 6."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Any:
        """Save the input, or a copy of it."""
        ctx.save_for_backward(_before(ctx, x, inplace))
        return _computed(ctx, activation.hardsigmoid, x, inplace)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the input."""
        return bridge.call(activation.hardsigmoid_backward, grad_y, *ctx.saved_tensors), None


@catalog.layer(
    native=torch.nn.Hardsigmoid,
    formulas="activation",
    functions=("hardsigmoid",),
    kinks=(-3, 3),
    choices=None,
    page=(
        r"y = \frac{1}{6} \min(\max(x + 3, 0), 6)",
        r"\d{x} = \frac{g}{6} \text{ where } |x| < 3 \text{, else } 0",
    ),
    memory=catalog.same_order(hardsigmoid=0, hardsigmoid_backward=0),
    flops=None,
)
class Hardsigmoid(Layer, torch.nn.Hardsigmoid):
    """`torch.nn.Hardsigmoid` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``min(max(x + 3, 0), 6) / 6``, any shape."""
        y: Tensor = HardsigmoidFunction.apply(input, bridge.overwrites(input, self.inplace))
        return y


class SigmoidFunction(torch.autograd.Function):
    """1 / (1 + exp(-x))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        """Save the output."""
        y = bridge.call(activation.sigmoid, x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the output."""
        return bridge.call(activation.sigmoid_backward, grad_y, *ctx.saved_tensors)


@catalog.layer(
    native=torch.nn.Sigmoid,
    formulas="activation",
    functions=("sigmoid",),
    kinks=(),
    choices=None,
    page=(
        r"y = \frac{1}{1 + e^{-x}}",
        r"\d{x} = g y (1 - y)",
    ),
    memory=catalog.same_order(sigmoid=0, sigmoid_backward=0),
    flops=None,
)
class Sigmoid(Layer, torch.nn.Sigmoid):
    """`torch.nn.Sigmoid` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``1 / (1 + exp(-x))``, any shape; integers become floats."""
        y: Tensor = SigmoidFunction.apply(_floating(input))
        return y


class LogSigmoidFunction(torch.autograd.Function):
    """log(1 / (1 + exp(-x)))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        """Save the input."""
        ctx.save_for_backward(x)
        return bridge.call(activation.logsigmoid, x)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the input."""
        return bridge.call(activation.logsigmoid_backward, grad_y, *ctx.saved_tensors)


@catalog.layer(
    native=torch.nn.LogSigmoid,
    formulas="activation",
    functions=("logsigmoid",),
    kinks=(),
    choices=None,
    page=(
        r"y = \ln(\frac{1}{1 + e^{-x}})",
        r"\d{x} = \frac{g}{1 + e^x}",
    ),
    memory=catalog.same_order(logsigmoid_backward=0),
    flops=None,
)
class LogSigmoid(Layer, torch.nn.LogSigmoid):
    """`torch.nn.LogSigmoid` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``log(1 / (1 + exp(-x)))``, any shape."""
        y: Tensor = LogSigmoidFunction.apply(bridge.expect_tensor(input))
        return y


class SoftsignFunction(torch.autograd.Function):
    """x / (1 + |x|)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        """Save the input."""
        ctx.save_for_backward(x)
        return bridge.call(activation.softsign, x)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the input."""
        return bridge.call(activation.softsign_backward, grad_y, *ctx.saved_tensors)


@catalog.layer(
    native=torch.nn.Softsign,
    formulas="activation",
    functions=("softsign",),
    kinks=(),
    choices=None,
    page=(
        r"y = \frac{x}{1 + |x|}",
        r"\d{x} = \frac{g}{(1 + |x|)^2}",
    ),
    memory=catalog.same_order(softsign=0, softsign_backward=0),
    flops=None,
)
class Softsign(Layer, torch.nn.Softsign):
    """`torch.nn.Softsign` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``x / (1 + |x|)``, any shape; integers become floats."""
        bridge.expect_no_transform(input)
        if not input.is_floating_point() and input.dtype == torch.bool:
            raise NotImplementedError("input: expected numbers, got torch.bool")
        y: Tensor = SoftsignFunction.apply(_floating(input))
        return y


class TanhFunction(torch.autograd.Function):
    """tanh(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        """Save the output."""
        y = bridge.call(activation.tanh, x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the output."""
        return bridge.call(activation.tanh_backward, grad_y, *ctx.saved_tensors)


@catalog.layer(
    native=torch.nn.Tanh,
    formulas="activation",
    functions=("tanh",),
    kinks=(),
    choices=None,
    page=(
        r"y = \tanh(x)",
        r"\d{x} = g (1 - y^2)",
    ),
    memory=catalog.same_order(tanh=0, tanh_backward=0),
    flops=None,
)
class Tanh(Layer, torch.nn.Tanh):
    """`torch.nn.Tanh` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``tanh(x)``, any shape; integers become floats."""
        y: Tensor = TanhFunction.apply(_floating(input))
        return y


class GLUFunction(torch.autograd.Function):
    """a sigmoid(b), for the halves a and b of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Any:
        """Save the input."""
        ctx.save_for_backward(x)
        ctx.dim = dim
        return bridge.call(activation.glu, x, dim=dim)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the input."""
        return bridge.call(activation.glu_backward, grad_y, *ctx.saved_tensors, dim=ctx.dim), None


@catalog.layer(
    native=torch.nn.GLU,
    formulas="activation",
    functions=("glu",),
    kinks=(),
    choices=None,
    page=(
        r"y = a σ(b)",
        r"\d{a} = g σ(b)"
        "\n"
        r"\d{b} = g a σ(b) (1 - σ(b))",
    ),
    memory=catalog.same_order(glu=0, glu_backward=1),
    flops=None,
)
class GLU(Layer, torch.nn.GLU):
    """`torch.nn.GLU` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``a sigmoid(b)`` for the halves of the input along ``dim``, which must be even."""
        bridge.expect_no_transform(input)
        if input.dim() == 0:
            raise RuntimeError("input: expected at least one dimension, got none")
        y: Tensor = GLUFunction.apply(input, self.dim)
        return y


def _floating(input: Tensor) -> Tensor:
    """Integers and booleans as floats; the bridge refuses complex numbers."""
    input = bridge.expect_tensor(input)
    return input if input.is_floating_point() or input.is_complex() else input.to(torch.get_default_dtype())
