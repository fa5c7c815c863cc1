"""Pooling layers."""

from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge
from cnn_lightning.ops import pool


class MaxPool2dFunction(torch.autograd.Function):
    """`ops.pool.max_pool2d` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: dict[str, Any]) -> Tensor:
        """The pooled output."""
        ctx.save_for_backward(x)
        ctx.options = options
        return bridge.call(pool.max_pool2d, x, **options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        """The gradient at the pixels that won."""
        (x,) = ctx.saved_tensors
        return bridge.call(pool.max_pool2d_backward, grad_y, x, **ctx.options), None


class MaxPool2d(torch.nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool (N, C, H, W) or (C, H, W)."""
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        x = input if input.dim() == 4 else input.unsqueeze(0)
        y: Tensor = MaxPool2dFunction.apply(x, {name: getattr(self, name) for name in names})
        return y if input.dim() == 4 else y.squeeze(0)
