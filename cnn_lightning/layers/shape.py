"""Flatten and Identity: views, which torch makes without touching the data, and which keep every derivative."""

import torch
from torch import Tensor

from cnn_lightning.layers import catalog

__all__ = ["Flatten", "Identity"]


@catalog.layer(
    native=torch.nn.Flatten,
    formulas="",
    functions=(),
    kinks=(),
    choices=None,
    page=(
        r"y_k = x_{c,u,v} \text{, row by row}",
        r"\d{x_{c,u,v}} = g_k",
    ),
    memory={},
    flops=None,
)
class Flatten(torch.nn.Flatten):
    """``(N, C, H, W)`` to ``(N, C·H·W)``, or any other run of dimensions to one.

    Nothing is computed, so there is nothing to write in NumPy: an array that aliased a tensor's memory would hide
    later changes from autograd, a view of torch's own doesn't.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Join the dimensions ``start_dim`` to ``end_dim``; a view wherever the strides allow one."""
        return input.flatten(self.start_dim, self.end_dim)


@catalog.layer(
    native=torch.nn.Identity,
    formulas="",
    functions=(),
    kinks=(),
    choices=None,
    page=(
        r"y = x",
        r"\d{x} = g",
    ),
    memory={},
    flops=None,
)
class Identity(torch.nn.Identity):
    """The input itself."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input``."""
        return input
