"""The linear layer, by `ops.linear`."""

from cnn_lightning.ops import linear
from cnn_lightning.ops.types import Array
from cnn_lightning.portable.layers.base import Layer


class Linear(Layer):
    """A weighted sum of all features for every output."""

    def forward(self, x: Array) -> Array:
        """(..., I) to (..., O)."""
        self.saved = x
        return linear.linear(x, self.weight, self.bias)

    def backward(self, grad_y: Array) -> tuple[Array]:
        """Of the features; and of weight and bias."""
        grad_x, grad_weight, grad_bias = linear.linear_backward(grad_y, self.saved, self.weight)
        self.gradients = {"weight": grad_weight, "bias": grad_bias}
        return (grad_x,)
