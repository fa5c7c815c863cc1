"""Activations, by `ops.activation`."""

from cnn_lightning.ops import activation
from cnn_lightning.ops.types import Array
from cnn_lightning.portable.layers.base import Layer

FROM_INPUT = {
    "relu": (activation.relu, activation.relu_backward),
    "relu6": (activation.relu6, activation.relu6_backward),
    "hardtanh": (activation.hardtanh, activation.hardtanh_backward),
    "leaky_relu": (activation.leaky_relu, activation.leaky_relu_backward),
    "elu": (activation.elu, activation.elu_backward),
    "gelu": (activation.gelu, activation.gelu_backward),
    "silu": (activation.silu, activation.silu_backward),
    "mish": (activation.mish, activation.mish_backward),
    "softplus": (activation.softplus, activation.softplus_backward),
    "hardswish": (activation.hardswish, activation.hardswish_backward),
    "hardsigmoid": (activation.hardsigmoid, activation.hardsigmoid_backward),
}
"""Forward and backward of the functions whose backward takes the input."""

FROM_OUTPUT = {
    "sigmoid": (activation.sigmoid, activation.sigmoid_backward),
    "tanh": (activation.tanh, activation.tanh_backward),
}
"""Those whose backward takes the output."""


class Activation(Layer):
    """A function of each number by itself; the option ``function`` names it."""

    def forward(self, x: Array) -> Array:
        """Any shape."""
        options = {name: value for name, value in self.options.items() if name != "function"}
        name = self.options["function"]
        forward, _ = FROM_INPUT.get(name) or FROM_OUTPUT[name]
        y: Array = forward(x, **options)
        self.saved = (x if name in FROM_INPUT else y), options
        return y

    def backward(self, grad_y: Array) -> tuple[Array]:
        """Of each number by itself."""
        name = self.options["function"]
        _, backward = FROM_INPUT.get(name) or FROM_OUTPUT[name]
        value, options = self.saved
        return (backward(grad_y, value, **options),)
