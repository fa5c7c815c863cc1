"""The base of NumPy layers: errors and warnings for tools that know torch's layers by their exact type.

Such a tool does not know a subclass: it compiles it and fails at some line of NumPy, or skips it without a message.
"""

import warnings
from collections.abc import Callable
from typing import Any, Self

import torch

from cnn_lightning.layers import catalog


def _has_products(layer: torch.nn.Module) -> bool:
    """Whether it is a convolution or a linear layer: those whose operations are counted."""
    return any(entry.flops and entry.layer is type(layer) for entry in catalog.entries().values())


def _is_non_linear_for_captum(layer: torch.nn.Module) -> bool:
    return type(layer).__name__ in _NON_LINEAR


_NON_LINEAR = {
    "ReLU",
    "LeakyReLU",
    "ELU",
    "Softplus",
    "Sigmoid",
    "Tanh",
    "Softmax",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
}
"""The layers for which captum's DeepLift has a rule, by their native type."""
_VISITORS = {
    "captum.attr._core.deep_lift": (
        _is_non_linear_for_captum,
        "captum's DeepLift takes it for linear, which makes it wrong",
    ),
    "thop.profile": (_has_products, "thop counts no operations for it"),
}
"""Tools that visit each layer by ``net.apply(function)``: the module of the function, which native layers they know,
and what happens to a NumPy layer instead."""


class Layer(torch.nn.Module):
    """The first base, before the native class, of each layer that computes in NumPy."""

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """Called by ``torch.jit.script`` before it compiles the layer.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            f"{type(self).__name__}: torch.jit.script can't compile NumPy layers; expected native ones: "
            "swap_layers(net, 'torch') first, or torch.export, which keeps NumPy"
        )

    def apply(self, fn: Callable[[torch.nn.Module], None]) -> Self:
        """`torch.nn.Module.apply`, with a warning if ``fn`` belongs to a tool that searches for native layers."""
        knows, consequence = _VISITORS.get(getattr(fn, "__module__", None) or "", (None, ""))
        if knows is not None and knows(self):
            self._warn(consequence)
        return super().apply(fn)

    def __setattr__(self, name: str, value: Any) -> None:
        """`torch.nn.Module.__setattr__`, with a warning if one of torch's quantisers marks the layer."""
        if name == "qconfig" and _has_products(self):
            self._warn("torch.ao.quantization leaves it as it is")
        super().__setattr__(name, value)

    def _warn(self, consequence: str) -> None:
        warnings.warn(
            f"{type(self).__name__}: this layer runs in NumPy, and {consequence}; swap_layers(net, 'torch') first",
            stacklevel=3,
        )
