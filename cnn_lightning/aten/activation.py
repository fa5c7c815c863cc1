"""Activations."""

from typing import Any

from torch import Tensor

from cnn_lightning.aten.kernels import Native, broadcast, operator
from cnn_lightning.layers import bridge
from cnn_lightning.ops import activation

_SELU = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
"""Slope and scale of SELU, as torch passes them to ``elu``."""


def _gradient(op: bridge.Operation, grad_y: Tensor, x: Tensor, **options: Any) -> Any:
    """A gradient by input or output; under ``vmap`` one of them may broadcast to the other."""
    if grad_y.shape != x.shape:
        grad_y, x = broadcast(grad_y, x)
    return bridge.compute(op, grad_y, x, **options)


@operator("relu")
def relu(x: Tensor) -> Any:
    """max(x, 0)."""
    return bridge.compute(activation.relu, x)


@operator("threshold")
def threshold(x: Tensor, threshold: float, value: float) -> Any:
    """X above the threshold, otherwise ``value``."""
    return bridge.compute(activation.threshold, x, threshold=threshold, value=value)


@operator("threshold_backward")
def threshold_backward(grad_y: Tensor, x: Tensor, threshold: float) -> Any:
    """grad_y above the threshold. torch's gradient of ReLU is this, of its output."""
    if threshold == 0:
        return _gradient(activation.relu_backward, grad_y, x)
    return _gradient(activation.threshold_backward, grad_y, x, threshold=threshold, value=0.0)


@operator("hardtanh")
def hardtanh(x: Tensor, min_val: float = -1, max_val: float = 1) -> Any:
    """X between the bounds; torch's ReLU6 is this."""
    if (min_val, max_val) == (0, 6):
        return bridge.compute(activation.relu6, x)
    return bridge.compute(activation.hardtanh, x, min_val=min_val, max_val=max_val)


@operator("hardtanh_backward")
def hardtanh_backward(grad_y: Tensor, x: Tensor, min_val: float, max_val: float) -> Any:
    """grad_y between the bounds."""
    if (min_val, max_val) == (0, 6):
        return _gradient(activation.relu6_backward, grad_y, x)
    return _gradient(activation.hardtanh_backward, grad_y, x, min_val=min_val, max_val=max_val)


@operator("leaky_relu")
def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Any:
    """X above 0, otherwise x times the slope."""
    return bridge.compute(activation.leaky_relu, x, negative_slope=negative_slope)


@operator("leaky_relu_backward")
def leaky_relu_backward(grad_y: Tensor, x: Tensor, negative_slope: float, self_is_result: bool) -> Any:
    """The gradient; ``x`` may be the output, which has the sign of the input."""
    return _gradient(activation.leaky_relu_backward, grad_y, x, negative_slope=negative_slope)


@operator("_prelu_kernel")
def prelu(x: Tensor, weight: Tensor) -> Any:
    """X above 0, otherwise x times a slope for each element; ``weight`` broadcasts to ``x``."""
    return bridge.compute(activation.prelu, x.reshape(1, -1), _for_each(weight, x)).reshape(x.shape)


@operator("_prelu_kernel_backward")
def prelu_backward(grad_y: Tensor, x: Tensor, weight: Tensor) -> Any:
    """The gradients of input and slope, both for each element: torch adds those of one slope."""
    rows = grad_y.reshape(1, -1), x.reshape(1, -1), _for_each(weight, x)
    grad_x, grad_weight = bridge.compute(activation.prelu_backward, *rows)
    return grad_x.reshape(x.shape), grad_weight.reshape(x.shape)


def _for_each(weight: Tensor, x: Tensor) -> Tensor:
    return weight.expand_as(x).reshape(-1)


@operator("elu")
def elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Any:
    """ELU, and SELU and CELU, which torch computes by it."""
    op, options = _kind(alpha, scale, input_scale)
    return bridge.compute(getattr(activation, op), x, **options)


@operator("elu_backward")
def elu_backward(grad_y: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor) -> Any:
    """The gradient, from the input, or from the output if ``is_result``."""
    op, options = _kind(alpha, scale, input_scale)
    return _gradient(getattr(activation, f"{op}_backward{'_from_output' * is_result}"), grad_y, x, **options)


def _kind(alpha: float, scale: float, input_scale: float) -> tuple[str, dict[str, Any]]:
    if scale == input_scale == 1:
        return "elu", {"alpha": alpha}
    if (alpha, scale) == _SELU and input_scale == 1:
        return "selu", {}
    if scale == 1 and input_scale == 1 / alpha:
        return "celu", {"alpha": alpha}
    raise Native("scaled in another way than SELU and CELU")


@operator("gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Any:
    """X times the normal distribution's cumulative probability."""
    return bridge.compute(activation.gelu, x, approximate=approximate)


@operator("gelu_backward")
def gelu_backward(grad_y: Tensor, x: Tensor, *, approximate: str = "none") -> Any:
    """The gradient of `gelu`."""
    return _gradient(activation.gelu_backward, grad_y, x, approximate=approximate)


@operator("silu")
def silu(x: Tensor) -> Any:
    """X times its sigmoid."""
    return bridge.compute(activation.silu, x)


@operator("silu_backward")
def silu_backward(grad_y: Tensor, x: Tensor) -> Any:
    """The gradient of `silu`."""
    return _gradient(activation.silu_backward, grad_y, x)


@operator("mish")
def mish(x: Tensor) -> Any:
    """X times the tanh of its softplus."""
    return bridge.compute(activation.mish, x)


@operator("mish_backward")
def mish_backward(grad_y: Tensor, x: Tensor) -> Any:
    """The gradient of `mish`."""
    return _gradient(activation.mish_backward, grad_y, x)


@operator("softplus")
def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Any:
    """log(1 + exp(beta x)) / beta."""
    return bridge.compute(activation.softplus, x, beta=beta, threshold=threshold)


@operator("softplus_backward")
def softplus_backward(grad_y: Tensor, x: Tensor, beta: float, threshold: float) -> Any:
    """The gradient of `softplus`."""
    return _gradient(activation.softplus_backward, grad_y, x, beta=beta, threshold=threshold)


@operator("hardswish")
def hardswish(x: Tensor) -> Any:
    """X times `hardsigmoid`."""
    return bridge.compute(activation.hardswish, x)


@operator("hardswish_backward")
def hardswish_backward(grad_y: Tensor, x: Tensor) -> Any:
    """The gradient of `hardswish`."""
    return _gradient(activation.hardswish_backward, grad_y, x)


@operator("hardsigmoid")
def hardsigmoid(x: Tensor) -> Any:
    """X / 6 + 1/2 between 0 and 1."""
    return bridge.compute(activation.hardsigmoid, x)


@operator("hardsigmoid_backward")
def hardsigmoid_backward(grad_y: Tensor, x: Tensor) -> Any:
    """The gradient of `hardsigmoid`."""
    return _gradient(activation.hardsigmoid_backward, grad_y, x)


@operator("sigmoid")
def sigmoid(x: Tensor) -> Any:
    """1 / (1 + exp(-x))."""
    return bridge.compute(activation.sigmoid, x)


@operator("sigmoid_backward")
def sigmoid_backward(grad_y: Tensor, y: Tensor) -> Any:
    """The gradient of `sigmoid`, from its output."""
    return _gradient(activation.sigmoid_backward, grad_y, y)


@operator("log_sigmoid_forward")
def log_sigmoid(x: Tensor) -> Any:
    """log(sigmoid(x)), and exp(-abs(x)), from which torch's own backward begins."""
    return bridge.compute(activation.logsigmoid, x), x.abs().neg_().exp_()


@operator("log_sigmoid_backward")
def log_sigmoid_backward(grad_y: Tensor, x: Tensor, buffer: Tensor) -> Any:
    """The gradient of `log_sigmoid`."""
    return _gradient(activation.logsigmoid_backward, grad_y, x)


@operator("tanh")
def tanh(x: Tensor) -> Any:
    """The hyperbolic tangent."""
    return bridge.compute(activation.tanh, x)


@operator("tanh_backward")
def tanh_backward(grad_y: Tensor, y: Tensor) -> Any:
    """The gradient of `tanh`, from its output."""
    return _gradient(activation.tanh_backward, grad_y, y)


@operator("glu")
def glu(x: Tensor, dim: int = -1) -> Any:
    """The first half times the sigmoid of the second half."""
    return bridge.compute(activation.glu, x, dim=dim)


@operator("glu_backward")
def glu_backward(grad_y: Tensor, x: Tensor, dim: int) -> Any:
    """The gradient of `glu`."""
    return bridge.compute(activation.glu_backward, grad_y, x, dim=dim)
