"""Convolution, by `ops.conv`."""

from cnn_lightning.ops import conv
from cnn_lightning.ops.types import Array
from cnn_lightning.portable.layers.base import Layer


class Conv2d(Layer):
    """Kernels that slide over images (N, C, H, W)."""

    def forward(self, x: Array) -> Array:
        """To (N, O, H', W')."""
        self.saved = x
        return conv.conv2d(x, self.weight, self.bias, **self.options)

    def backward(self, grad_y: Array) -> tuple[Array]:
        """Of the images; and of weight and bias."""
        grad_x, grad_weight, grad_bias = conv.conv2d_backward(grad_y, self.saved, self.weight, **self.options)
        self.gradients = {"weight": grad_weight, "bias": grad_bias}
        return (grad_x,)
