"""Local response normalisation."""

from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.ops import response

__all__ = ["LocalResponseNorm"]


class LocalResponseNormFunction(torch.autograd.Function):
    """`ops.response.local_response_norm` and its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Divide by a power of the mean square of neighbour channels."""
        ctx.save_for_backward(x)
        ctx.options = options
        return bridge.call(response.local_response_norm, x, **options)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        """The gradient, through the value itself and through the mean squares that it is in."""
        return bridge.call(response.local_response_norm_backward, grad_y, *ctx.saved_tensors, **ctx.options), None


@catalog.layer(
    native=torch.nn.LocalResponseNorm,
    formulas="response",
    functions=("local_response_norm",),
    kinks=(),
    choices=None,
    page=(
        r"y_c = \frac{x_c}{b_c^β} \text{, } b_c = k + \frac{α}{n} \sum_{j \text{ near } c} x_j^2",
        r"\d{x_c} = \frac{g_c}{b_c^β} - \frac{2 α β}{n} x_c \sum_{j \text{ near } c} \frac{g_j x_j}{b_j^{β+1}}",
    ),
    memory=catalog.same_order(local_response_norm=0, local_response_norm_backward=1),
    flops=None,
)
class LocalResponseNorm(Layer, torch.nn.LocalResponseNorm):
    """``torch.nn.LocalResponseNorm`` in NumPy."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...) of at least three axes, each value by ``size`` channels around its own."""
        bridge.expect_no_transform(input)
        if input.dim() < 3:
            raise ValueError(f"LocalResponseNorm: input: expected at least 3 axes, got shape {tuple(input.shape)}")
        if input.numel() == 0:
            return input
        if input.dim() > 3 and input.device.type == "cpu":
            input = bridge.autocast("float32", input)
        options = {"size": self.size, "alpha": self.alpha, "beta": self.beta, "k": self.k}
        y: Tensor = LocalResponseNormFunction.apply(input, options)
        return y
