"""Softmax, by `ops.softmax`."""

from cnn_lightning.ops import softmax
from cnn_lightning.ops.types import Array
from cnn_lightning.portable.layers.base import Layer


class Softmax(Layer):
    """Positive numbers whose sum along an axis is 1."""

    def forward(self, x: Array) -> Array:
        """Any shape."""
        self.saved = softmax.softmax(x, **self.options)
        return self.saved  # type: ignore[no-any-return]

    def backward(self, grad_y: Array) -> tuple[Array]:
        """From the output."""
        return (softmax.softmax_backward(grad_y, self.saved, **self.options),)
