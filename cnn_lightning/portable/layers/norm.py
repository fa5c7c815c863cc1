"""Normalisation, by `ops.norm`."""

import numpy as np

from cnn_lightning.errors import UserError
from cnn_lightning.ops import norm
from cnn_lightning.ops.types import Array
from cnn_lightning.portable.layers.base import Layer


class BatchNorm(Layer):
    """Each channel by its statistics: in training those of the batch, which also change the running ones."""

    def forward(self, x: Array) -> Array:
        """(N, C, ...), any number of axes.

        Raises:
            UserError: In training, one value for a channel, whose variance is not known.
        """
        options = {"eps": self.options["eps"]}
        use_batch = self.training or "running_mean" not in self.parameters
        given = (None, None) if use_batch else (self.parameters["running_mean"], self.parameters["running_var"])
        if use_batch and x.size == x.shape[1]:
            raise UserError(f"--batch_size: expected more than one value for each channel, got {x.shape} to normalise")
        y, mean, var = norm.batch_norm(x, self.weight, self.bias, *given, **options)
        if self.training and "running_mean" in self.parameters:
            self._update(mean, var, x.size // x.shape[1])
        self.saved = x, mean, var, {**options, "training": use_batch}
        return y

    def backward(self, grad_y: Array) -> tuple[Array]:
        """Of the input; and of weight and bias."""
        x, mean, var, options = self.saved
        grad_x, grad_weight, grad_bias = norm.batch_norm_backward(grad_y, x, self.weight, mean, var, **options)
        self.gradients = {"weight": grad_weight, "bias": grad_bias}
        return (grad_x,)

    def _update(self, mean: Array, var: Array, count: int) -> None:
        """Move the running statistics towards the batch's; the running variance is that of a sample."""
        self.parameters["num_batches_tracked"][...] += 1
        part = self.options["momentum"]
        part = 1 / int(self.parameters["num_batches_tracked"]) if part is None else part
        factors = part, part * count / (count - 1)
        latest = ((self.parameters["running_mean"], mean), (self.parameters["running_var"], var))
        for (running, now), factor in zip(latest, factors, strict=True):
            running[...] = running * np.float64(1 - part) + now * factor  # in float64, rounded once


class LayerNorm(Layer):
    """The last axes of each sample by their own statistics."""

    def forward(self, x: Array) -> Array:
        """Any shape that ends in that of the weight."""
        y, mean, var = norm.layer_norm(x, self.weight, self.bias, **self.options)
        self.saved = x, mean, var
        return y

    def backward(self, grad_y: Array) -> tuple[Array]:
        """Of the input; and of weight and bias."""
        x, mean, var = self.saved
        gradients = norm.layer_norm_backward(grad_y, x, self.weight, mean, var, **self.options)
        grad_x, self.gradients["weight"], self.gradients["bias"] = gradients
        return (grad_x,)
