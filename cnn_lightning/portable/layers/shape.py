"""What has no formula in `cnn_lightning.ops`: numbers are moved, added, multiplied or averaged.

In options, -1 for a length is whatever the batch makes of it.
"""

from math import prod

import numpy as np

from cnn_lightning.ops.types import Array
from cnn_lightning.portable.layers.base import Layer


def reduced(grad: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of an array of this shape that was broadcast: the sum over its copies."""
    first = grad.ndim - len(shape)
    axes = tuple(axis for axis in range(grad.ndim) if axis < first or shape[axis - first] < grad.shape[axis])
    return grad.sum(axes, dtype=np.float64).astype(grad.dtype).reshape(shape) if axes else grad


class Parameter(Layer):
    """A weight that is used as it is."""

    def forward(self) -> Array:
        """The weight."""
        return self.weight  # type: ignore[no-any-return]

    def backward(self, grad_y: Array) -> tuple[()]:
        """Of the weight."""
        self.gradients = {"weight": grad_y}
        return ()


class Add(Layer):
    """The sum of two arrays that broadcast, or of one and the option ``number``."""

    def forward(self, *inputs: Array) -> Array:
        """The sum."""
        self.saved = [x.shape for x in inputs]
        return inputs[0] + (inputs[1] if len(inputs) == 2 else self.options["number"])

    def backward(self, grad_y: Array) -> tuple[Array, ...]:
        """The same for each."""
        return tuple(reduced(grad_y, shape) for shape in self.saved)


class Multiply(Layer):
    """The product of two arrays that broadcast, or of one and the option ``number``."""

    def forward(self, *inputs: Array) -> Array:
        """The product."""
        self.saved = inputs
        return inputs[0] * (inputs[1] if len(inputs) == 2 else self.options["number"])

    def backward(self, grad_y: Array) -> tuple[Array, ...]:
        """Of each, the gradient times the other."""
        if len(self.saved) == 1:
            return (grad_y * self.options["number"],)
        a, b = self.saved
        return reduced(grad_y * b, a.shape), reduced(grad_y * a, b.shape)


class Concatenate(Layer):
    """Arrays one after the other along an axis."""

    def forward(self, *inputs: Array) -> Array:
        """As long as all together."""
        self.saved = [x.shape[self.options["axis"]] for x in inputs]
        y: Array = np.concatenate(inputs, axis=self.options["axis"])
        return y

    def backward(self, grad_y: Array) -> tuple[Array, ...]:
        """Each its part."""
        return tuple(np.split(grad_y, np.cumsum(self.saved)[:-1], axis=self.options["axis"]))


class Reshape(Layer):
    """The same numbers in another shape."""

    def forward(self, x: Array) -> Array:
        """To the option ``shape``."""
        self.saved = x.shape
        return x.reshape(self.options["shape"])

    def backward(self, grad_y: Array) -> tuple[Array]:
        """In the shape of the input."""
        return (grad_y.reshape(self.saved),)


class Permute(Layer):
    """The axes in another order."""

    def forward(self, x: Array) -> Array:
        """Axis i of the output is the axis ``order[i]`` of the input."""
        return x.transpose(self.options["order"])

    def backward(self, grad_y: Array) -> tuple[Array]:
        """The axes back in their order."""
        return (grad_y.transpose(np.argsort(self.options["order"])),)


class Expand(Layer):
    """Copies along axes of length 1; the second input has the batch's length, for axes of length -1."""

    def forward(self, x: Array, pictures: Array) -> Array:
        """To the option ``shape``."""
        self.saved = x.shape
        shape = [len(pictures) if length == -1 else length for length in self.options["shape"]]
        return np.broadcast_to(x, shape)

    def backward(self, grad_y: Array) -> tuple[Array]:
        """The sum over the copies."""
        return (reduced(grad_y, self.saved),)


class Mean(Layer):
    """The mean over axes."""

    def forward(self, x: Array) -> Array:
        """Without the axes, or with length 1 there (``keepdims``)."""
        self.saved = x.shape
        axes = tuple(self.options["axes"])
        total = x.sum(axes, dtype=np.float64, keepdims=self.options["keepdims"])
        y: Array = (total / prod(x.shape[axis] for axis in axes)).astype(x.dtype)
        return y

    def backward(self, grad_y: Array) -> tuple[Array]:
        """The same part for each number of a mean."""
        axes = tuple(self.options["axes"])
        each = grad_y if self.options["keepdims"] else np.expand_dims(grad_y, axes)
        count = prod(self.saved[axis] for axis in axes)
        return (np.broadcast_to(each / count, self.saved).astype(grad_y.dtype),)


class Part(Layer):
    """A part of an array: for each axis one place, or first, end and step."""

    def forward(self, x: Array) -> Array:
        """Without the axes of which one place was taken."""
        self.saved = x
        return x[self._index()]

    def backward(self, grad_y: Array) -> tuple[Array]:
        """0 outside the part."""
        grad_x = np.zeros_like(self.saved)
        grad_x[self._index()] = grad_y
        return (grad_x,)

    def _index(self) -> tuple[int | slice, ...]:
        return tuple(slice(*at) if isinstance(at, list) else at for at in self.options["at"])


class Product(Layer):
    """Products of matrices in the last two axes."""

    def forward(self, a: Array, b: Array) -> Array:
        """(..., I, K) and (..., K, J) to (..., I, J)."""
        self.saved = a, b
        return a @ b

    def backward(self, grad_y: Array) -> tuple[Array, Array]:
        """``grad_y b^T`` and ``a^T grad_y``."""
        a, b = self.saved
        grad_a, grad_b = grad_y @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ grad_y
        return reduced(grad_a, a.shape), reduced(grad_b, b.shape)


class Pad(Layer):
    """Zeros around an array: for each axis so many before and after."""

    def forward(self, x: Array) -> Array:
        """Longer by its borders."""
        self.saved = x.shape
        return np.pad(x, self.options["widths"])

    def backward(self, grad_y: Array) -> tuple[Array]:
        """What is inside the borders."""
        inside = zip(self.options["widths"], self.saved, strict=True)
        return (grad_y[tuple(slice(before, before + n) for (before, _), n in inside)],)


class Roll(Layer):
    """What leaves an axis at one end comes in again at the other."""

    def forward(self, x: Array) -> Array:
        """The same shape."""
        return np.roll(x, self.options["shifts"], self.options["axes"])

    def backward(self, grad_y: Array) -> tuple[Array]:
        """Rolled back."""
        return (np.roll(grad_y, [-shift for shift in self.options["shifts"]], self.options["axes"]),)


class Gather(Layer):
    """Rows of a table, by the numbers in the buffer ``index``."""

    def forward(self, x: Array) -> Array:
        """(R, ...) to (M, ...) for M numbers."""
        self.saved = x
        return x[self.parameters["index"]]

    def backward(self, grad_y: Array) -> tuple[Array]:
        """Each row gets the sum of those that are copies of it."""
        grad_x = np.zeros_like(self.saved, dtype=np.float64)
        np.add.at(grad_x, self.parameters["index"], grad_y)
        return (grad_x.astype(grad_y.dtype),)
