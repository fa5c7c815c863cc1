"""The torch side of the exercises: layers that run the functions of the learner's files in the current folder.

``cnn-lightning fit --model.layers '{"pool*": "cnn_lightning.tools.learn.faces.MaxPool2d"}'`` trains with the
``max_pool2d`` and ``max_pool2d_backward`` of ``ex05_max_pool2d.py``. A layer that is no part of SimpleCNN takes the
place of another one: `Sigmoid` that of a ReLU, `AvgPool2d` that of max-pooling, `Dropout` that of a flattening, behind
which it drops.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnn_lightning.errors import UserError
from cnn_lightning.layers import bridge
from cnn_lightning.ops import conv
from cnn_lightning.tools.learn.course import EXERCISES
from cnn_lightning.tools.learn.course.exercise import Array
from cnn_lightning.tools.learn.loading import module_of, place_of, words_of

DROPPED = 0.1
"""The probability of `Dropout`."""


@cache
def learned(number: int) -> ModuleType:
    """The learner's file of an exercise, from the current folder.

    Raises:
        UserError: It is not there, or does not run.
    """
    path = Path.cwd() / f"{EXERCISES[number].stem}.py"
    if not path.is_file():
        raise UserError(f"layers: expected the file {path.name} in the current folder; cnn-lightning learn {number}")
    try:
        return module_of(path)
    except (Exception, SystemExit) as error:  # the learner's code may raise anything
        raise UserError(f"layers: {path.name}: {words_of(error)}, at {place_of(error, path)}") from None


@dataclass(frozen=True)
class Pair:
    """A forward and its backward.

    Attributes:
        forward: From arrays and options to the output.
        backward: From ``grad_y``, what was saved, and the options to the gradients.
        saved: The places of the arguments that the backward gets; -1 for the output.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    saved: tuple[int, ...] = (0,)


class PairFunction(torch.autograd.Function):
    """A `Pair` as an autograd Function."""

    @staticmethod
    def forward(ctx: Any, pair: Pair, options: dict[str, Any], *tensors: Tensor) -> Any:
        """The output."""
        y = bridge.call(pair.forward, *tensors, **options)
        ctx.save_for_backward(*(y if place == -1 else tensors[place] for place in pair.saved))
        ctx.pair, ctx.options, ctx.count = pair, options, len(tensors)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """A gradient for each tensor that has one."""
        found = bridge.call(ctx.pair.backward, grad_y, *ctx.saved_tensors, **ctx.options)
        gradients = found if isinstance(found, tuple) else (found,)
        return None, None, *gradients, *[None] * (ctx.count - len(gradients))


def _apply(pair: Pair, *tensors: Tensor, **options: Any) -> Tensor:
    y: Tensor = PairFunction.apply(pair, options, *tensors)
    return y


def _only(module: torch.nn.Module, **options: Any) -> None:
    """Check that a layer has the only options that an exercise has."""
    for name, value in options.items():
        if getattr(module, name) not in (value, (value, value)):
            raise ValueError(f"{name}: expected {value}, as in the exercise, got {getattr(module, name)}")


class ReLU(torch.nn.ReLU):
    """Exercise 1."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape."""
        file = learned(1)
        return _apply(Pair(file.relu, file.relu_backward), input)


class Sigmoid(torch.nn.ReLU):
    """Exercise 2, in the place of a ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape."""
        file = learned(2)
        return _apply(Pair(file.sigmoid, file.sigmoid_backward, (-1,)), input)


class Linear(torch.nn.Linear):
    """Exercise 3."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_features) to (N, out_features)."""
        file = learned(3)
        return _apply(
            Pair(file.linear, file.linear_backward, (0, 1)), *bridge.autocast("lower", input, self.weight, self.bias)
        )


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Exercise 4: the mean, without weights and smoothing."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(N, C) and (N,) to a number."""
        _only(self, weight=None, label_smoothing=0.0, reduction="mean")
        file = learned(4)
        return _apply(Pair(_as_array(file.cross_entropy), file.cross_entropy_backward, (0, 1)), input, target)


def _as_array(function: Callable[..., Any]) -> Callable[..., Array]:
    """A function whose number becomes an array."""
    return lambda *arrays: np.asarray(function(*arrays))


class MaxPool2d(torch.nn.MaxPool2d):
    """Exercise 5: without padding."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        _only(self, padding=0, dilation=1, ceil_mode=False, return_indices=False)
        file = learned(5)
        pair = Pair(file.max_pool2d, file.max_pool2d_backward)
        return _apply(pair, input, kernel_size=self.kernel_size, stride=self.stride)


def _one(name: str, value: Any) -> int:
    """The number that an option has for rows and columns."""
    if not isinstance(value, tuple) or len(set(value)) != 1:
        raise ValueError(f"{name}: expected one number for rows and columns, got {value!r}")
    return int(value[0])


def _padded(x: Array, padding: int) -> Array:
    return np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))


class _Conv2d(torch.nn.Conv2d):
    """A convolution by a `Pair` of the class."""

    def pair(self) -> Pair:
        """Forward and backward, with the options stride and padding."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, O, H', W')."""
        _only(self, dilation=1, groups=1, padding_mode="zeros")
        stride, padding = _one("stride", self.stride), _one("padding", self.padding)
        tensors = bridge.autocast("lower", input, self.weight, self.bias)
        return _apply(self.pair(), *tensors, stride=stride, padding=padding)


class Conv2dForward(_Conv2d):
    """Exercise 6: the learner's forward, the formula's backward."""

    def pair(self) -> Pair:
        """The image is padded before the learner's function, which knows no padding."""
        _only(self, stride=1)
        file = learned(6)

        def forward(x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Any:
            return file.conv2d(_padded(x, padding), weight, bias)

        return Pair(forward, conv.conv2d_backward, (0, 1))


class Conv2dBackward(_Conv2d):
    """Exercise 7."""

    def pair(self) -> Pair:
        """The image is padded before the learner's functions, which know no padding."""
        _only(self, stride=1)
        file = learned(7)

        def forward(x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Any:
            return file.conv2d(_padded(x, padding), weight, bias)

        def backward(grad_y: Array, x: Array, weight: Array, stride: int, padding: int) -> Any:
            grad_wide, grad_weight, grad_bias = file.conv2d_backward(grad_y, _padded(x, padding), weight)
            rows, columns = (slice(padding, padding + size) for size in x.shape[2:])
            return grad_wide[:, :, rows, columns], grad_weight, grad_bias

        return Pair(forward, backward, (0, 1))


class Conv2d(_Conv2d):
    """Exercise 8."""

    def pair(self) -> Pair:
        """The learner's functions take stride and padding."""
        file = learned(8)
        return Pair(file.conv2d, file.conv2d_backward, (0, 1))


class Conv2dBlocks(_Conv2d):
    """Exercise 12: the learner's forward by blocks of 16 images, the formula's backward."""

    def pair(self) -> Pair:
        """The image is padded before the learner's function, which knows no padding."""
        _only(self, stride=1)
        file = learned(12)

        def forward(x: Array, weight: Array, bias: Array, stride: int, padding: int) -> Any:
            return file.conv2d_blocks(_padded(x, padding), weight, bias, block=16)

        return Pair(forward, conv.conv2d_backward, (0, 1))


class AvgPool2d(torch.nn.MaxPool2d):
    """Exercise 9: average pooling in the place of max-pooling."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H / k, W / k)."""
        _only(self, padding=0, stride=self.kernel_size)
        file = learned(9)
        return _apply(Pair(file.avg_pool2d, file.avg_pool2d_backward), input, kernel_size=self.kernel_size)


class Dropout(torch.nn.Flatten):
    """Exercise 9: dropout behind a flattening."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C * H * W); while training, a part of it is dropped."""
        rows = super().forward(input)
        if not self.training:
            return rows
        file, keep = learned(9), torch.empty_like(rows).bernoulli_(1 - DROPPED)
        return _apply(Pair(file.dropout, file.dropout_backward, (1,)), rows, keep, p=DROPPED)


class BatchNormFunction(torch.autograd.Function):
    """Batch normalisation of exercise 10, with the statistics of the batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        """Output, mean and variance."""
        like = x, weight, weight  # under autocast x may be in half precision, the statistics never are
        y, mean, var = bridge.call(learned(10).batch_norm, x, weight, bias, eps=eps, mixed=True, like=like)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Any) -> Any:
        """Gradients of x, weight and bias."""
        x, weight, *statistics = ctx.saved_tensors
        options = {"eps": ctx.eps, "mixed": True, "like": (x, weight, weight)}
        return *bridge.call(learned(10).batch_norm_backward, grad_y, x, weight, *statistics, **options), None


class BatchNorm2d(torch.nn.BatchNorm2d):
    """Exercise 10."""

    def forward(self, input: Tensor) -> Any:
        """(N, C, H, W), normalised by the batch while training, else by the running statistics."""
        file, averages = learned(10), (self.running_mean, self.running_var)
        if not self.training:
            if torch.is_grad_enabled() and input.requires_grad:
                raise NotImplementedError("batch_norm: the exercise has a gradient in training alone")
            with torch.no_grad():
                given = input, self.weight, self.bias, *averages
                y, *_ = bridge.call(file.batch_norm, *given, eps=self.eps, mixed=True)
            return y
        y, mean, var = BatchNormFunction.apply(input, self.weight, self.bias, self.eps)
        with torch.no_grad():
            options: dict[str, Any] = {"count": input.numel() // input.shape[1], "momentum": self.momentum}
            new = bridge.call(file.running_statistics, *averages, mean, var, **options)
            for average, value in zip(averages, new, strict=True):
                assert average is not None
                average.copy_(value)
        return y
