"""Activation layers. What ``inplace=True`` overwrites, backward does without or keeps a copy of, as torch does."""

from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge
from cnn_lightning.ops import activation


class ReLUFunction(torch.autograd.Function):
    """max(x, 0)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Any:
        """Keep the output alone: it is 0 where the gradient stops."""
        y = bridge.call(activation.relu, x)
        if inplace:
            ctx.mark_dirty(x)
            y = bridge.write(x, y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """0 where the output is not positive, NaN excepted."""
        (y,) = ctx.saved_tensors
        return bridge.call(activation.relu_backward, grad_y, y), None


class ReLU(torch.nn.ReLU):
    """`torch.nn.ReLU` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """``max(x, 0)`` for any shape."""
        y: Tensor = ReLUFunction.apply(input, self.inplace)
        return y
