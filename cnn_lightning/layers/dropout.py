"""Dropout layers. torch draws the masks: the same state of the generator gives the masks of the native layers."""

import warnings
from typing import Any

import torch
from torch import Tensor

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.ops import dropout

__all__ = ["Dropout", "Dropout1d", "Dropout2d"]


class DropoutFunction(torch.autograd.Function):
    """x keep / (1 - p)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, p: float, inplace: bool) -> Any:
        """Save only the mask."""
        ctx.save_for_backward(keep)
        ctx.p = p
        y = bridge.call(dropout.dropout, x, keep, p=p)
        if inplace:
            ctx.mark_dirty(x)
            return bridge.write(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        """grad_y keep / (1 - p)."""
        return bridge.call(dropout.dropout_backward, grad_y, *ctx.saved_tensors, p=ctx.p), None, None, None


PAGE = (
    r"y = x \text{ (dropout is off outside training)}",
    r"\d{x} = g",
)
"""The explain page shows a network that does not train, in which dropout changes nothing."""
MEMORY = catalog.same_order(dropout=0, dropout_backward=0)


@catalog.layer(
    native=torch.nn.Dropout,
    formulas="dropout",
    functions=("dropout",),
    kinks=(),
    choices=None,
    page=PAGE,
    memory=MEMORY,
    flops=None,
)
class Dropout(Layer, torch.nn.Dropout):
    """`torch.nn.Dropout` in NumPy, with torch's own mask."""

    def forward(self, input: Tensor) -> Tensor:
        """In training, 0 with probability p, otherwise 1 / (1 - p) times the input; in evaluation the input itself."""
        if bridge.expect_tensor(input).numel() == 0 or not self.training or self.p == 0:
            return input
        return _dropped(input, _elements(input, self.p, self.inplace), self.p, self.inplace)


@catalog.layer(
    native=torch.nn.Dropout1d,
    formulas="dropout",
    functions=(),
    kinks=(),
    choices=None,
    page=PAGE,
    memory=MEMORY,
    flops=None,
)
class Dropout1d(Layer, torch.nn.Dropout1d):
    """`torch.nn.Dropout1d` in NumPy: whole channels of ``(N, C, L)`` or ``(C, L)``."""

    def forward(self, input: Tensor) -> Tensor:
        """In training, channels are 0 with probability p, otherwise 1 / (1 - p) times the input.

        Raises:
            RuntimeError: An input that has neither two nor three dimensions.
        """
        bridge.expect_no_proxy(input)
        if input.dim() not in (2, 3):
            raise RuntimeError(f"dropout1d: input: expected (N, C, L) or (C, L), got shape {tuple(input.shape)}")
        if input.dim() == 2:
            bridge.overwrites(input, self.inplace)  # torch adds the batch axis in place and refuses here
        if not self.training or self.p == 0 or input.numel() == 0:
            return input
        bridge.expect_no_transform(input)
        batched = input if input.dim() == 3 else input.unsqueeze(0)
        keep = _channels(batched, self.p).view(*input.shape[:-1], 1)
        return _dropped(input, keep, self.p, self.inplace)


@catalog.layer(
    native=torch.nn.Dropout2d,
    formulas="dropout",
    functions=("dropout2d",),
    kinks=(),
    choices=None,
    page=PAGE,
    memory=MEMORY,
    flops=None,
)
class Dropout2d(Layer, torch.nn.Dropout2d):
    """`torch.nn.Dropout2d` in NumPy: whole channels of ``(N, C, H, W)``."""

    def forward(self, input: Tensor) -> Tensor:
        """In training, channels are 0 with probability p, otherwise 1 / (1 - p) times the input.

        As in torch, three dimensions count as ``(N, C, L)``, and any number except four gives torch's warning.

        Raises:
            RuntimeError: An input with fewer than two dimensions, unless p is 1.
        """
        bridge.expect_no_proxy(input)
        if input.dim() != 4:
            _warn_of_shape(input)
        if not self.training or self.p == 0 or input.numel() == 0:
            return input
        bridge.expect_no_transform(input)
        if input.dim() < 2 and self.p < 1:
            raise RuntimeError(f"dropout2d: input: expected at least two dimensions, got shape {tuple(input.shape)}")
        return _dropped(input, _channels(input, self.p), self.p, self.inplace)


def _elements(x: Tensor, p: float, inplace: bool) -> Tensor:
    """1 for each element to keep, 0 for the others.

    Drawn by torch's own dropout: on a GPU one kernel draws and multiplies, unless it works in place, and it draws in a
    different way than ``bernoulli_``.
    """
    if p == 1:
        return torch.zeros_like(x)
    return torch.nn.functional.dropout(torch.ones_like(x), p, inplace=inplace).ne_(0)


def _channels(x: Tensor, p: float) -> Tensor:
    """1 for each channel to keep, 0 for the others: ``(N, C, 1, ...)``."""
    shape = (*x.shape[:2], *(1,) * (x.dim() - 2))
    return x.new_zeros(shape) if p == 1 else x.new_empty(shape).bernoulli_(1 - p)


def _dropped(x: Tensor, keep: Tensor, p: float, inplace: bool) -> Tensor:
    if not x.is_floating_point():
        raise RuntimeError(f"dropout: input: expected a floating dtype, got {x.dtype}")
    y: Tensor = DropoutFunction.apply(x, keep, p, bridge.overwrites(x, inplace))
    return y


def _warn_of_shape(x: Tensor) -> None:
    if x.dim() == 3:
        warnings.warn(
            "dropout2d: Received a 3D input to dropout2d, which is taken for (N, C, L), where C is the channel dim; "
            "use dropout1d to say so.",
            stacklevel=3,
        )
    else:
        warnings.warn(
            f"dropout2d: Received a {x.dim()}-D input to dropout2d, which is deprecated; it is for (N, C, H, W).",
            stacklevel=3,
        )
