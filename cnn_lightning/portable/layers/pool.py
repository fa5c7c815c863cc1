"""Pooling, by `ops.pool`."""

from cnn_lightning.ops import pool
from cnn_lightning.ops.types import Array
from cnn_lightning.portable.layers.base import Layer


class MaxPool2d(Layer):
    """The largest value of each window."""

    def forward(self, x: Array) -> Array:
        """(N, C, H, W) to (N, C, H', W')."""
        self.saved = x
        return pool.max_pool2d(x, **self.options)

    def backward(self, grad_y: Array) -> tuple[Array]:
        """At the pixel that won each window."""
        return (pool.max_pool2d_backward(grad_y, self.saved, **self.options),)


class AvgPool2d(Layer):
    """The mean of each window."""

    def forward(self, x: Array) -> Array:
        """(N, C, H, W) to (N, C, H', W')."""
        self.saved = x
        return pool.avg_pool2d(x, **self.options)

    def backward(self, grad_y: Array) -> tuple[Array]:
        """Divided among the pixels of each window."""
        return (pool.avg_pool2d_backward(grad_y, self.saved, **self.options),)


class AdaptiveAvgPool2d(Layer):
    """The mean of windows whose number is fixed."""

    def forward(self, x: Array) -> Array:
        """(N, C, H, W) to (N, C, h, w)."""
        self.saved = x
        return pool.adaptive_avg_pool2d(x, **self.options)

    def backward(self, grad_y: Array) -> tuple[Array]:
        """Divided among the pixels of each window."""
        return (pool.adaptive_avg_pool2d_backward(grad_y, self.saved, **self.options),)
