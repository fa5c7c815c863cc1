"""Dropout, by `ops.dropout`."""

import numpy as np

from cnn_lightning.ops import dropout
from cnn_lightning.ops.types import Array
from cnn_lightning.portable.layers.base import Layer


class Dropout(Layer):
    """In training some numbers become 0, and the others grow by ``1 / (1 - p)``.

    The option ``along`` names the axes along which each is drawn by itself: all of them, the batch for stochastic
    depth by rows, none for stochastic depth by batches.
    """

    def forward(self, x: Array) -> Array:
        """Any shape."""
        self.saved = None
        p, along = self.options["p"], self.options["along"]
        if not self.training or p == 0:
            return x
        axes = {"all": x.ndim, "batch": 1, "none": 0}[along]
        shape = (*x.shape[:axes], *(1,) * (x.ndim - axes))
        self.saved = (self.random.random(shape, np.float32) >= p).astype(x.dtype)
        return dropout.dropout(x, self.saved, p=p)

    def backward(self, grad_y: Array) -> tuple[Array]:
        """Of those that were kept."""
        return (grad_y if self.saved is None else dropout.dropout_backward(grad_y, self.saved, p=self.options["p"]),)
