"""The linear layer."""

from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.ops import linear

__all__ = ["Linear"]


class LinearFunction(torch.autograd.Function):
    """A weighted sum of all features for every output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        """Keep input and weight: each is the other's gradient's factor, and not needed where that is frozen."""
        if any(ctx.needs_input_grad):
            for_x, for_weight, _ = ctx.needs_input_grad
            ctx.save_for_backward(x if for_weight else bridge.blank(x), weight if for_x else bridge.blank(weight))
        return bridge.call(linear.linear, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """Gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        return bridge.call(linear.linear_backward, grad_y, x, weight, needs=tuple(ctx.needs_input_grad))


@catalog.layer(
    native=torch.nn.Linear,
    formulas="linear",
    functions=("linear",),
    kinks=(),
    choices=None,
    page=(
        r"y_o = b_o + \sum_i w_{o,i} x_i",
        r"\d{w_{o,i}} = g_o x_i"
        "\n"
        r"\d{b_o} = g_o"
        "\n"
        r"\d{x_i} = \sum_o w_{o,i} g_o",
    ),
    memory={},
    flops=catalog.products,
)
class Linear(Layer, torch.nn.Linear):
    """`torch.nn.Linear` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        y: Tensor = LinearFunction.apply(*bridge.autocast("lower", input, self.weight, self.bias))
        return y
