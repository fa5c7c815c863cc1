"""Softmax layers."""

import warnings
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.ops import softmax

__all__ = ["LogSoftmax", "Softmax"]


class SoftmaxFunction(torch.autograd.Function):
    """exp(x_i) / sum_j exp(x_j)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Any:
        """Keep the output alone."""
        y = bridge.call(softmax.softmax, x, dim=dim)
        ctx.save_for_backward(y)
        ctx.dim = dim
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the output."""
        return bridge.call(softmax.softmax_backward, grad_y, *ctx.saved_tensors, dim=ctx.dim), None


@catalog.layer(
    native=torch.nn.Softmax,
    formulas="softmax",
    functions=("softmax",),
    kinks=(),
    choices=None,
    page=(
        r"y_k = \frac{e^{x_k}}{\sum_j e^{x_j}}",
        r"\d{x_k} = y_k (g_k - \sum_j g_j y_j)",
    ),
    memory={},
    flops=None,
)
class Softmax(Layer, torch.nn.Softmax):
    """`torch.nn.Softmax` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """Numbers above 0 that add up to 1 along ``dim``, in the shape of the input."""
        input = _autocast(input)
        y: Tensor = SoftmaxFunction.apply(input, _dim("softmax", self.dim, input))
        return y


class LogSoftmaxFunction(torch.autograd.Function):
    """x_i - log sum_j exp(x_j)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Any:
        """Keep the output alone."""
        y = bridge.call(softmax.log_softmax, x, dim=dim)
        ctx.save_for_backward(y)
        ctx.dim = dim
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """From the output."""
        return bridge.call(softmax.log_softmax_backward, grad_y, *ctx.saved_tensors, dim=ctx.dim), None


@catalog.layer(
    native=torch.nn.LogSoftmax,
    formulas="softmax",
    functions=("log_softmax",),
    kinks=(),
    choices=None,
    page=(
        r"y_k = x_k - \ln(\sum_j e^{x_j})",
        r"\d{x_k} = g_k - e^{y_k} \sum_j g_j",
    ),
    memory={},
    flops=None,
)
class LogSoftmax(Layer, torch.nn.LogSoftmax):
    """`torch.nn.LogSoftmax` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """The logarithm of `Softmax`, without its underflow."""
        input = _autocast(input)
        y: Tensor = LogSoftmaxFunction.apply(input, _dim("log_softmax", self.dim, input))
        return y


def _autocast(x: Tensor) -> Tensor:
    """In float32 where torch.autocast says so: on GPUs, but not on the CPU."""
    bridge.expect_no_transform(x)
    if x.device.type != "cpu":
        x = bridge.autocast("float32", x)
    return x


def _dim(name: str, dim: int | None, x: Tensor) -> int:
    """``dim``, or torch's old choice, with its warning, where there is none."""
    if dim is not None:
        return dim
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. Change the call to include dim=X as an argument.",
        stacklevel=3,
    )
    return 0 if x.dim() in (0, 1, 3) else 1
